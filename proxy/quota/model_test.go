package quota

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
)

const gib = int64(1) << 30

// A clock stands still until it is moved.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// real is a container as a modelEngine has it; use is what it takes while it runs.
type real struct {
	Container
	use int64
}

// A modelEngine holds the truth.
type modelEngine struct {
	clock *clock
	feed  *Feed
	// most is what no user's containers may come to, weighed by weight.
	most   int64
	weight func(*real, time.Time) int64

	mu     sync.Mutex
	all    map[string]*real
	next   int
	broken []string
	// lossy makes events get lost and late, by chance.
	lossy *rand.Rand
}

// heard tells the feed of a container, mostly. e.mu is held.
func (e *modelEngine) heard(id string, sure bool) {
	sums := make(map[string]int64)
	for _, c := range e.all {
		sums[c.User] += e.weight(c, e.clock.now())
	}
	for user, sum := range sums {
		if sum > e.most {
			e.broken = append(e.broken, fmt.Sprintf("%s has %d of %d", user, sum/gib, e.most/gib))
		}
	}
	times := 1
	if e.lossy != nil {
		times = e.lossy.IntN(3)
	}
	if sure {
		times = max(times, 1)
	}
	for range times {
		e.feed.Changed(id)
	}
}

// look answers what a container is, now and then late.
func (e *modelEngine) look(_ context.Context, id string) (Container, error) {
	e.mu.Lock()
	c := e.all[id]
	late := e.lossy != nil && e.lossy.IntN(4) == 0
	var answer Container
	if c != nil {
		answer = c.Container
	}
	e.mu.Unlock()
	if late {
		time.Sleep(time.Duration(200) * time.Microsecond)
	}
	if c == nil {
		return Container{}, ErrGone
	}
	return answer, nil
}

func (e *modelEngine) create(user string, memory int64, restarts, sure bool) Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next++
	c := &real{Container{ID: fmt.Sprintf("%s-%d", user, e.next), User: user, Memory: memory, Fresh: true, Restarts: restarts}, memory / 4}
	e.all[c.ID] = c
	e.heard(c.ID, sure)
	return c.Container
}

// change changes a container, and reports whether there is such a one.
func (e *modelEngine) change(id string, sure bool, f func(*real)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.all[id]
	if c == nil {
		return false
	}
	f(c)
	e.heard(id, sure)
	return true
}

func (e *modelEngine) started(c *real) {
	if !c.Running {
		c.Running, c.Fresh, c.Began = true, false, e.clock.now()
	}
}

func (e *modelEngine) remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.all, id)
	e.heard(id, false)
}

// some is one of a user's containers, "" where there is none.
func (e *modelEngine) some(user string, r *rand.Rand) string {
	var ids []string
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, c := range e.all {
		if c.User == user {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids)
	return ids[r.IntN(len(ids))]
}

// list is all there are.
func (e *modelEngine) list() (ids []string, at time.Time) {
	e.clock.advance(time.Millisecond)
	at = e.clock.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.all {
		ids = append(ids, id)
	}
	return ids, at
}

// Read reads /user, or /user/container.
func (e *modelEngine) Read(path string) (cgroupstat.Usage, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	user, id, one := strings.Cut(path[1:], "/")
	u := cgroupstat.Usage{Exists: true}
	for _, c := range e.all {
		if c.User == user && c.Running && (!one || c.ID == id) {
			u.Memory += c.use
		}
	}
	return u, nil
}

// A bench is a keeper before a modelEngine.
type bench struct {
	*Keeper
	engine *modelEngine
	limit  atomic.Int64
}

func newBench(t testing.TB, accounting policy.Accounting, limit int64) *bench {
	t.Helper()
	c := newClock()
	e := &modelEngine{clock: c, most: limit, all: make(map[string]*real), weight: committed}
	if accounting == policy.AccountUsage {
		e.weight = used
	}
	b := &bench{engine: e}
	b.limit.Store(limit)
	b.Keeper = &Keeper{
		Book: NewBook(c.now), Reader: e, Accounting: accounting, OnError: policy.SwitchDeny, Now: c.now,
		LimitsOf: func(string, string) policy.Limits {
			most := b.limit.Load()
			return policy.Limits{Aggregate: &policy.Aggregate{MemoryMax: &most}}
		},
		SliceOf: func(s *policy.Subject) string { return "/" + s.User },
		ScopeOf: func(s *policy.Subject, id string) string { return "/" + s.User + "/" + id },
	}
	e.feed = NewFeed(b.Book, e.look, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		e.feed.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	e.feed.Listed(nil, c.now())
	return b
}

// committed and used are the truth about what a container counts, by the two ways of
// accounting.
func committed(c *real, _ time.Time) int64 {
	if c.Running || c.may() {
		return c.Memory
	}
	return 0
}

func used(c *real, now time.Time) int64 {
	if c.Running && now.Sub(c.Began) >= settle {
		return c.use
	}
	return committed(c, now)
}

func (b *bench) reserve(t testing.TB, user string, ask Ask) (*Hold, bool) {
	t.Helper()
	h, v, err := b.Reserve(context.Background(), &policy.Subject{User: user, Slice: user}, ask)
	if err != nil {
		t.Error(err)
	}
	return h, v.Allowed()
}

// step does something by chance, in the way that the proxy does it.
func (b *bench) step(t testing.TB, user string, r *rand.Rand, late *sync.WaitGroup) {
	e := b.engine
	pause := func() {
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
		}
	}
	memory := int64(1+r.IntN(3)) * gib
	restarts := b.Accounting == policy.AccountCommitted && r.IntN(3) == 0
	id := e.some(user, r)
	action := r.IntN(10)
	if _, known := b.Book.Container(id); !known {
		// The proxy waits until it is.
		action = 0
	}
	// ended is false where the client hangs up: the promise goes later.
	hangup := r.IntN(6) == 0
	drop := func(h *Hold) {
		late.Add(1)
		time.AfterFunc(2*time.Millisecond, func() {
			defer late.Done()
			for !e.feed.Idle() {
				time.Sleep(100 * time.Microsecond)
			}
			h.Drop()
		})
	}
	switch {
	case action < 3:
		h, ok := b.reserve(t, user, Ask{Memory: memory, New: true})
		if !ok {
			return
		}
		pause()
		c := e.create(user, memory, restarts, hangup)
		if pause(); hangup {
			drop(h)
			return
		}
		h.Made(c)
		h.Drop()
	case action < 5:
		c, _ := b.Book.Container(id)
		h, ok := b.reserve(t, user, Ask{Container: id, Memory: c.Memory})
		if !ok {
			return
		}
		pause()
		done := e.change(id, hangup, e.started)
		switch pause(); {
		case done && hangup:
			drop(h)
			return
		case done:
			h.Started()
		}
		h.Drop()
	case action < 7:
		ask := Ask{Container: id, Update: true}
		if r.IntN(3) > 0 {
			ask.Memory = memory
		}
		if b.Accounting == policy.AccountCommitted && r.IntN(2) == 0 {
			ask.Restarts = &restarts
		}
		h, ok := b.reserve(t, user, ask)
		if !ok {
			return
		}
		pause()
		done := e.change(id, hangup, func(c *real) {
			if ask.Memory > 0 {
				c.Memory = ask.Memory
			}
			if ask.Restarts != nil {
				c.Restarts = *ask.Restarts
			}
		})
		switch pause(); {
		case done && hangup:
			drop(h)
			return
		case done:
			h.Updated()
		}
		h.Drop()
	case action < 8:
		h, ok := b.reserve(t, user, Ask{Container: id, Unpause: true})
		if pause(); ok {
			h.Drop()
		}
	case action < 9:
		e.change(id, false, func(c *real) { c.Running = false })
		if pause(); r.IntN(2) == 0 {
			// Its restart policy starts it.
			e.change(id, false, func(c *real) {
				if c.Restarts {
					e.started(c)
				}
			})
		}
	default:
		e.remove(id)
	}
}

// quiet waits until the feed has asked about everything.
func (b *bench) quiet(t testing.TB) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !b.engine.feed.Idle(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(until) {
			t.Fatal("the feed does not come to rest")
		}
	}
}

// compare holds the book against the truth.
func (b *bench) compare(t testing.TB, users ...string) {
	t.Helper()
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	n := 0
	for _, user := range users {
		for _, c := range b.Book.Containers(user) {
			n++
			is := b.engine.all[c.ID]
			c.noted, c.raised, c.rise, c.first, c.claimed = time.Time{}, time.Time{}, 0, 0, false
			switch {
			case is == nil:
				t.Errorf("%s is in the book and gone", c.ID)
			case fmt.Sprint(c) != fmt.Sprint(is.Container):
				t.Errorf("the book has %+v, the truth is %+v", c, is.Container)
			}
		}
		b.Book.mu.Lock()
		if a := b.Book.accounts[user]; a != nil && len(a.promises) > 0 {
			t.Errorf("%s has %d promises left", user, len(a.promises))
		}
		b.Book.mu.Unlock()
	}
	if n != len(b.engine.all) {
		t.Errorf("the book has %d containers, and there are %d", n, len(b.engine.all))
	}
	if len(b.engine.broken) > 0 {
		t.Errorf("%d times more than the limit, first: %s", len(b.engine.broken), b.engine.broken[0])
		b.engine.broken = nil
	}
}

// TestTheBookEqualsTheTruth lets three users do what they like, several things at once,
// while events get lost, are doubled, and are answered late, lists are old and limits
// change. After each rest the book must equal the truth, and never may anybody have more
// than the limit.
func TestTheBookEqualsTheTruth(t *testing.T) {
	const (
		seed   = 77
		rounds = 60
		steps  = 12
	)
	users := []string{"alice", "bob", "carol"}
	for _, accounting := range []policy.Accounting{policy.AccountUsage, policy.AccountCommitted} {
		t.Run(accounting.String(), func(t *testing.T) {
			b := newBench(t, accounting, 10*gib)
			b.engine.lossy = rand.New(rand.NewPCG(seed, 0))
			for round := range rounds {
				ids, at := b.engine.list()
				var all, late sync.WaitGroup
				for i := range 2 * len(users) {
					all.Go(func() {
						r := rand.New(rand.NewPCG(seed, uint64(round<<8|i)))
						for range steps {
							b.step(t, users[i%len(users)], r, &late)
							b.engine.clock.advance(time.Duration(r.IntN(4)) * time.Second)
						}
					})
				}
				all.Go(func() {
					b.limit.Store(6 * gib)
					b.engine.feed.Listed(ids, at)
					time.Sleep(time.Millisecond)
					b.limit.Store(10 * gib)
				})
				all.Wait()
				late.Wait()
				b.quiet(t)
				b.engine.clock.advance(time.Millisecond)
				b.engine.feed.Listed(b.engine.list())
				b.quiet(t)
				if b.compare(t, users...); t.Failed() {
					t.Fatalf("seed %d, round %d", seed, round)
				}
				b.engine.clock.advance(settle)
			}
			if b.engine.next < rounds {
				t.Errorf("only %d containers were made: the test has lost its bite", b.engine.next)
			}
			t.Logf("%d containers were made", b.engine.next)
		})
	}
}
