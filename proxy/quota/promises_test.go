package quota

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
)

type idle struct{}

func (idle) Read(string) (cgroupstat.Usage, error) { return cgroupstat.Usage{Exists: true}, nil }

// counter is a keeper of one user, with room for three containers of 10 bytes.
func counter(accounting policy.Accounting, running bool) *Keeper {
	most, max := 3, int64(30)
	book := NewBook(time.Now)
	book.Synced()
	return &Keeper{
		Book: book, Reader: idle{}, Accounting: accounting, CountRunning: running, Now: time.Now,
		LimitsOf: func(string, string) policy.Limits {
			return policy.Limits{MaxContainers: &most, Aggregate: &policy.Aggregate{MemoryMax: &max}}
		},
		SliceOf: func(*policy.Subject) string { return "/s" }, ScopeOf: func(*policy.Subject, string) string { return "/s/c" },
	}
}

var ann = &policy.Subject{User: "ann"}

func reserve(t *testing.T, k *Keeper, ask Ask, want bool) *Hold {
	t.Helper()
	h, v, err := k.Reserve(context.Background(), ann, ask)
	if err != nil || v.Allowed() != want {
		t.Fatalf("%+v: %+v, %v; want %t", ask, v, err, want)
	}
	return h
}

// told is what the Engine's events tell of a container.
func told(k *Keeper, c Container) {
	c.User = "ann"
	k.Book.Set(c, k.Book.Version(c.ID))
}

// TestEventsBeforeTheAnswer tells of containers before the answer to their makers is there.
func TestEventsBeforeTheAnswer(t *testing.T) {
	for _, accounting := range []policy.Accounting{policy.AccountUsage, policy.AccountCommitted} {
		k := counter(accounting, false)
		made := Ask{Memory: 10, New: true}
		a, b := reserve(t, k, made, true), reserve(t, k, made, true)
		one := Container{ID: "1", User: "ann", Memory: 10, Fresh: true}
		told(k, one)
		// One is kept and one is under way: there is room for a third, and for no fourth.
		c := reserve(t, k, made, true)
		reserve(t, k, made, false)
		a.Made(one)
		two := Container{ID: "2", User: "ann", Memory: 10, Fresh: true}
		b.Made(two)
		told(k, two)
		three := Container{ID: "3", User: "ann", Memory: 10, Fresh: true}
		told(k, three)
		c.Made(three)
		reserve(t, k, made, false)
		reserve(t, k, Ask{Container: "3", Memory: 10}, true).Started()
		if r, err := k.Report(context.Background(), ann); err != nil || r.Standing.Containers != 3 || r.Standing.Arriving != 0 || r.Standing.Committed != 30 {
			t.Errorf("%+v, %v", r.Standing, err)
		}
	}
}

// TestOthersContainersKeepNoPromise tells of a container that was there before.
func TestOthersContainersKeepNoPromise(t *testing.T) {
	k := counter(policy.AccountCommitted, false)
	told(k, Container{ID: "old", Memory: 10, Fresh: true})
	reserve(t, k, Ask{Memory: 10, New: true}, true)
	told(k, Container{ID: "old", Memory: 10, Running: true})
	told(k, Container{ID: "larger", Memory: 11, Fresh: true})
	reserve(t, k, Ask{Memory: 10, New: true}, false)
}

// TestMadeAndGone removes a container before the answer is there that tells of it.
func TestMadeAndGone(t *testing.T) {
	k := counter(policy.AccountUsage, false)
	h := reserve(t, k, Ask{Memory: 10, New: true}, true)
	told(k, Container{ID: "1", Memory: 10, Fresh: true})
	k.Book.Gone("1")
	h.Made(Container{ID: "1", User: "ann", Memory: 10, Fresh: true})
	if list := k.Book.Containers("ann"); len(list) != 0 {
		t.Errorf("the book has %+v", list)
	}
}

// TestStartsUnderWayCount starts containers at once where those that run are counted.
func TestStartsUnderWayCount(t *testing.T) {
	k := counter(policy.AccountUsage, true)
	var holds []*Hold
	for _, id := range []string{"1", "2", "3", "4"} {
		told(k, Container{ID: id})
	}
	for _, id := range []string{"1", "2", "3"} {
		holds = append(holds, reserve(t, k, Ask{Container: id}, true))
	}
	reserve(t, k, Ask{Container: "4"}, false)
	holds[0].Started()
	reserve(t, k, Ask{Container: "4"}, false)
	holds[1].Drop()
	reserve(t, k, Ask{Container: "4"}, true)
}

// TestPromisesDoNotHideWhatThereIs has a container go on, and one be started, while its
// limit counts or is raised.
func TestPromisesDoNotHideWhatThereIs(t *testing.T) {
	k := counter(policy.AccountCommitted, false)
	told(k, Container{ID: "1", Memory: 20, Running: true})
	reserve(t, k, Ask{Container: "1", Unpause: true}, true)
	reserve(t, k, Ask{Memory: 20, New: true}, false)

	k = counter(policy.AccountCommitted, false)
	told(k, Container{ID: "1", Memory: 10})
	reserve(t, k, Ask{Container: "1", Memory: 10}, true)
	reserve(t, k, Ask{Container: "1", Memory: 20, Update: true}, true).Updated()
	reserve(t, k, Ask{Memory: 20, New: true}, false)
}

// TestNothingIsPromisedByHearsay loses sight of the Engine, and finds it again with other
// containers than the book had.
func TestNothingIsPromisedByHearsay(t *testing.T) {
	k := counter(policy.AccountCommitted, false)
	feed := NewFeed(k.Book, func(_ context.Context, id string) (Container, error) {
		return Container{ID: id, User: "ann", Memory: 10, Running: true}, nil
	}, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go feed.Run(ctx)
	feed.Listed([]string{"1"}, time.Now())
	reserve(t, k, Ask{Memory: 10, New: true}, true).Drop()
	feed.Lost()
	soon, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	if _, v, err := k.Reserve(soon, ann, Ask{Memory: 10, New: true}); err == nil || v.Allowed() {
		t.Errorf("%+v, %v", v, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { feed.Listed([]string{"1", "2", "3"}, time.Now()) })
	reserve(t, k, Ask{Memory: 10, New: true}, false)
}
