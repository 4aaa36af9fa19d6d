package quota

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
)

var accountings = []policy.Accounting{policy.AccountUsage, policy.AccountCommitted}

// made makes a container in the way of the proxy.
func (b *bench) made(t testing.TB, user string, memory int64, restarts bool) Container {
	t.Helper()
	h, ok := b.reserve(t, user, Ask{Memory: memory, New: true})
	if !ok {
		t.Fatalf("%d are refused", memory)
	}
	c := b.engine.create(user, memory, restarts, true)
	h.Made(c)
	return c
}

// start starts one.
func (b *bench) start(t testing.TB, id string) bool {
	t.Helper()
	c, _ := b.Book.Container(id)
	h, ok := b.reserve(t, c.User, Ask{Container: id, Memory: c.Memory, GPUs: c.GPUs})
	if ok {
		b.engine.change(id, true, b.engine.started)
		h.Started()
	}
	return ok
}

func (b *bench) update(t testing.TB, id string, memory int64) bool {
	t.Helper()
	h, ok := b.reserve(t, "alice", Ask{Container: id, Memory: memory, Update: true})
	if ok {
		b.engine.change(id, true, func(c *real) { c.Memory = memory })
		h.Updated()
	}
	return ok
}

// granted counts how many of many requests at once are let through.
func granted(n int, ask func(i int) bool) int {
	var all sync.WaitGroup
	var yes atomic.Int32
	for i := range n {
		all.Go(func() {
			if ask(i) {
				yes.Add(1)
			}
		})
	}
	all.Wait()
	return int(yes.Load())
}

// TestRoomForThreeGivesThree sends twenty requests of each kind at once.
func TestRoomForThreeGivesThree(t *testing.T) {
	for _, accounting := range accountings {
		t.Run("create "+accounting.String(), func(t *testing.T) {
			b := newBench(t, accounting, 3*gib)
			if n := granted(20, func(int) bool {
				h, ok := b.reserve(t, "alice", Ask{Memory: gib, New: true})
				if ok {
					h.Made(b.engine.create("alice", gib, false, true))
				}
				return ok
			}); n != 3 {
				t.Errorf("%d are made", n)
			}
			b.quiet(t)
			b.compare(t, "alice")
		})
		t.Run("start "+accounting.String(), func(t *testing.T) {
			b := newBench(t, accounting, 3*gib)
			var ids []string
			for i := range 20 {
				// They ran once: nothing counts of them.
				id := fmt.Sprint("alice-", i)
				b.engine.all[id] = &real{Container: Container{ID: id, User: "alice", Memory: gib}}
				ids = append(ids, id)
			}
			b.engine.feed.Listed(ids, b.engine.clock.now())
			b.quiet(t)
			if n := granted(20, func(i int) bool { return b.start(t, ids[i]) }); n != 3 {
				t.Errorf("%d are started", n)
			}
			b.quiet(t)
			b.compare(t, "alice")
		})
		t.Run("update "+accounting.String(), func(t *testing.T) {
			b := newBench(t, accounting, 23*gib)
			var ids []string
			for range 20 {
				c := b.made(t, "alice", gib, false)
				b.start(t, c.ID)
				ids = append(ids, c.ID)
			}
			if n := granted(20, func(i int) bool { return b.update(t, ids[i], 2*gib) }); n != 3 {
				t.Errorf("%d grow", n)
			}
			b.quiet(t)
			b.compare(t, "alice")
		})
	}
}

// TestRunningContainersAreCountedWhileTheyStart leaves room for three that run.
func TestRunningContainersAreCountedWhileTheyStart(t *testing.T) {
	b := newBench(t, policy.AccountUsage, 100*gib)
	three := 3
	limits := b.LimitsOf
	b.CountRunning = true
	b.LimitsOf = func(user, group string) policy.Limits {
		l := limits(user, group)
		l.MaxContainers = &three
		return l
	}
	var ids []string
	for range 10 {
		ids = append(ids, b.made(t, "alice", gib, false).ID)
	}
	if n := granted(10, func(i int) bool { return b.start(t, ids[i]) }); n != 3 {
		t.Errorf("%d are started", n)
	}
}

// standingOf is what a user has, by the report.
func (b *bench) standingOf(t testing.TB, user string) policy.Standing {
	t.Helper()
	r, err := b.Report(context.Background(), &policy.Subject{User: user, Slice: user})
	if err != nil {
		t.Fatal(err)
	}
	return r.Standing
}

// TestALimitCountsUntilTheContainerHasSettled looks at what is pending in a container's
// first minute and after it.
func TestALimitCountsUntilTheContainerHasSettled(t *testing.T) {
	b := newBench(t, policy.AccountUsage, 10*gib)
	c := b.made(t, "alice", 4*gib, false)
	want := func(when string, pending, used int64) {
		t.Helper()
		b.quiet(t)
		s := b.standingOf(t, "alice")
		if s.Pending != pending*gib || s.Used != used*gib || s.Committed != 4*gib && pending+used > 0 && when != "raised" && when != "raised long ago" {
			t.Errorf("%s: %+v", when, s)
		}
	}
	want("made", 4, 0)
	b.start(t, c.ID)
	want("started", 3, 1)
	b.engine.clock.advance(settle - 1)
	want("nearly settled", 3, 1)
	b.engine.clock.advance(1)
	want("settled", 0, 1)
	if !b.update(t, c.ID, 6*gib) {
		t.Fatal("a rise that fits is refused")
	}
	want("raised", 2, 1)
	b.engine.clock.advance(settle)
	want("raised long ago", 0, 1)
	if b.update(t, c.ID, 16*gib) {
		t.Error("a rise by ten is let through where nine are left")
	}
	if !b.update(t, c.ID, 15*gib) {
		t.Error("a rise by nine is refused where nine are left")
	}
}

// TestPromisesTakeNothingAway: a request about a container must not hide what that holds.
func TestPromisesTakeNothingAway(t *testing.T) {
	yes := true
	for _, accounting := range accountings {
		b := newBench(t, accounting, 4*gib)
		c := b.made(t, "alice", 3*gib, false)
		b.start(t, c.ID)
		b.quiet(t)
		for name, ask := range map[string]Ask{
			"unpause": {Container: c.ID, Unpause: true}, "restart": {Container: c.ID, Memory: gib}, "update to less": {Container: c.ID, Memory: gib, Update: true},
			"update to restart": {Container: c.ID, Update: true, Restarts: &yes}, "negative": {Memory: -100 * gib, New: true},
		} {
			h, ok := b.reserve(t, "alice", ask)
			if !ok && (name != "negative" || accounting == policy.AccountUsage) {
				t.Errorf("%s: refused", name)
			}
			if _, ok := b.reserve(t, "alice", Ask{Memory: 2 * gib, New: true}); ok {
				t.Errorf("%s, %v: hides what the container holds", name, accounting)
			}
			h.Drop()
		}
	}
}

// TestAStoppedContainerThatGrowsIsStartedAsItGrew starts a container while it is changed.
func TestAStoppedContainerThatGrowsIsStartedAsItGrew(t *testing.T) {
	for _, accounting := range accountings {
		b := newBench(t, accounting, 4*gib)
		c := b.made(t, "alice", gib, false)
		b.start(t, c.ID)
		b.engine.change(c.ID, true, func(c *real) { c.Running = false })
		b.quiet(t)
		grown, ok := b.reserve(t, "alice", Ask{Container: c.ID, Memory: 5 * gib, Update: true})
		if !ok {
			t.Fatal("what does not run counts nothing")
		}
		if b.start(t, c.ID) {
			t.Errorf("%v: it is started", accounting)
		}
		grown.Drop()
		started, ok := b.reserve(t, "alice", Ask{Container: c.ID, Memory: gib})
		if !ok {
			t.Fatal("a start that fits is refused")
		}
		if _, ok := b.reserve(t, "alice", Ask{Container: c.ID, Memory: 5 * gib, Update: true}); ok {
			t.Errorf("%v: it grows while it is started", accounting)
		}
		started.Drop()
	}
}

// TestStepsOfBuilds: what a build was promised, its steps take.
func TestStepsOfBuilds(t *testing.T) {
	for _, accounting := range accountings {
		b := newBench(t, accounting, 10*gib)
		h, ok := b.reserve(t, "alice", Ask{Memory: 4 * gib, Build: true})
		if !ok {
			t.Fatal("refused")
		}
		step := &real{Container: Container{ID: "step", User: "alice", Memory: 4 * gib, Running: true, Step: true, Began: b.engine.clock.now()}}
		b.engine.all["step"] = step
		b.engine.feed.Changed("step")
		b.quiet(t)
		if s := b.standingOf(t, "alice"); s.Committed != 4*gib || s.Pending != 4*gib || s.Containers != 0 {
			t.Errorf("during a build: %+v", s)
		}
		h.Drop()
		b.engine.clock.advance(settle)
		if s := b.standingOf(t, "alice"); s.Committed != 4*gib {
			t.Errorf("a step whose build nobody waits for: %+v", s)
		}
	}
}

// TestContainersWithoutALimitCountAsOneWithTheDefault.
func TestContainersWithoutALimitCountAsOneWithTheDefault(t *testing.T) {
	b := newBench(t, policy.AccountCommitted, 4*gib)
	most, each := 4*gib, 3*gib
	b.LimitsOf = func(string, string) policy.Limits {
		return policy.Limits{Aggregate: &policy.Aggregate{MemoryMax: &most}, PerContainer: policy.ContainerLimits{Memory: &each}}
	}
	b.engine.all["old"] = &real{Container: Container{ID: "old", User: "alice"}}
	b.engine.feed.Changed("old")
	b.quiet(t)
	if !b.start(t, "old") {
		t.Error("it is refused")
	}
	if _, ok := b.reserve(t, "alice", Ask{Memory: 2 * gib, New: true}); ok {
		t.Error("it counts nothing")
	}
}

// unreadable is a Reader of nothing.
type unreadable struct{}

func (unreadable) Read(string) (cgroupstat.Usage, error) {
	return cgroupstat.Usage{}, errors.New("input/output error")
}

func TestUnreadableUse(t *testing.T) {
	b := newBench(t, policy.AccountUsage, 4*gib)
	b.Reader = unreadable{}
	h, v, err := b.Reserve(context.Background(), &policy.Subject{User: "alice"}, Ask{Memory: gib, New: true})
	if h != nil || err != nil || v.Allowed() || v.Rule != "cgroup-unreadable" {
		t.Errorf("%+v, %v", v, err)
	}
	r, err := b.Report(context.Background(), &policy.Subject{User: "alice"})
	if err != nil || !strings.Contains(r.Refused, "cgroup-unreadable") || r.Unread == "" || r.When.IsZero() {
		t.Errorf("the report is %+v, %v", r, err)
	}
	b.OnError = policy.SwitchAllow
	h, v, _ = b.Reserve(context.Background(), &policy.Subject{User: "alice"}, Ask{Memory: gib, New: true})
	if v.Outcome != policy.FailOpen {
		t.Errorf("%+v", v)
	}
	if _, v, _ := b.Reserve(context.Background(), &policy.Subject{User: "alice"}, Ask{Memory: 4 * gib, New: true}); v.Allowed() {
		t.Error("what was promised is forgotten where use cannot be read")
	}
	h.Drop()
}

// TestRequestsWaitForTheFirstCount, for each container of the first list, although asking
// fails at first.
func TestRequestsWaitForTheFirstCount(t *testing.T) {
	var asked atomic.Int32
	b := NewBook(time.Now)
	f := NewFeed(b, func(_ context.Context, id string) (Container, error) {
		switch {
		case id == "gone":
			return Container{}, fmt.Errorf("%w: %s", ErrGone, id)
		case asked.Add(1) == 1:
			return Container{}, errors.New("the Engine is busy")
		}
		return Container{ID: id, User: "alice", Memory: 3 * gib, Running: true}, nil
	}, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go f.Run(ctx)
	most := 4 * gib
	k := &Keeper{
		Book: b, Reader: &modelEngine{}, Accounting: policy.AccountCommitted, Now: time.Now, SliceOf: func(*policy.Subject) string { return "/alice" },
		LimitsOf: func(string, string) policy.Limits {
			return policy.Limits{Aggregate: &policy.Aggregate{MemoryMax: &most}}
		},
	}
	f.Changed("early")
	short, end := context.WithTimeout(ctx, 20*time.Millisecond)
	defer end()
	if _, _, err := k.Reserve(short, &policy.Subject{User: "alice"}, Ask{Memory: gib, New: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before the first list: %v", err)
	}
	answer := make(chan policy.Verdict)
	go func() {
		_, v, err := k.Reserve(ctx, &policy.Subject{User: "alice"}, Ask{Memory: 2 * gib, New: true})
		if err != nil {
			t.Error(err)
		}
		answer <- v
	}()
	f.Listed([]string{"early", "gone"}, time.Now())
	if v := <-answer; v.Allowed() {
		t.Error("a request went on before a container was counted that could not be asked about at once")
	}
	if !f.Idle() {
		t.Error("the feed is not at rest")
	}
	if _, known := b.Container("gone"); known {
		t.Error("what is gone is in the book")
	}
}

// TestAnswersThatOvertakeEachOther: of two answers about one container the one that was
// asked for first may come last.
func TestAnswersThatOvertakeEachOther(t *testing.T) {
	b := NewBook(time.Now)
	first := b.Version("c")
	second := b.Version("c")
	if !b.Set(Container{ID: "c", User: "alice", Running: true}, second) {
		t.Error("the first answer is refused")
	}
	if b.Set(Container{ID: "c", User: "alice"}, first) {
		t.Error("the older answer is taken")
	}
	late := b.Version("d")
	b.Gone("d")
	b.Keep(func(string) bool { return false }, time.Now())
	if b.Set(Container{ID: "d", User: "alice"}, late) {
		t.Error("an answer brings back what is gone")
	}
	if _, known := b.Container("c"); known {
		t.Error("what is on no list stays")
	}
}

// TestAContainerThatDiedAtOnceIsNotHeldToRun: the answer to a start may be read after the
// container's end.
func TestAContainerThatDiedAtOnceIsNotHeldToRun(t *testing.T) {
	b := newBench(t, policy.AccountCommitted, 4*gib)
	c := b.made(t, "alice", gib, false)
	h, _ := b.reserve(t, "alice", Ask{Container: c.ID, Memory: gib})
	b.engine.change(c.ID, true, b.engine.started)
	b.engine.change(c.ID, true, func(c *real) { c.Running = false })
	b.quiet(t)
	h.Started()
	b.quiet(t)
	b.compare(t, "alice")

	h, _ = b.reserve(t, "alice", Ask{Memory: gib, New: true})
	brief := b.engine.create("alice", gib, false, true)
	b.quiet(t)
	b.engine.remove(brief.ID)
	b.quiet(t)
	h.Made(brief)
	b.quiet(t)
	b.compare(t, "alice")
}

// TestAnOwnerThatIsKnownLater: the steps of builds are nobody's at first.
func TestAnOwnerThatIsKnownLater(t *testing.T) {
	b := newBench(t, policy.AccountCommitted, 4*gib)
	b.engine.all["step"] = &real{Container: Container{ID: "step", Memory: gib, Running: true, Step: true}}
	b.engine.feed.Changed("step")
	b.quiet(t)
	if _, known := b.Book.Container("step"); known {
		t.Error("what is nobody's is in the book")
	}
	b.engine.change("step", true, func(c *real) { c.User = "alice" })
	b.quiet(t)
	b.compare(t, "alice")
}
