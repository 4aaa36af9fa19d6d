// Package quota knows what each user's containers hold of the machine, and decides
// whether one more fits. Decisions about one user are made one after the other, so that
// what fits once is not given twice.
package quota

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01-proxy/policy"
)

// A Container is what counts of a container.
type Container struct {
	ID   string
	Name string
	User string
	// Memory is its limit in bytes, 0 where it has none.
	Memory int64
	// Running is true for paused and restarting ones too, Fresh where it was never
	// started, and Restarts where the Engine may start it by itself.
	Running, Fresh, Restarts bool
	// Began is when it was started last.
	Began time.Time
	// GPUs are those that it asks for.
	GPUs policy.GPUAsk
	// noted is when the book heard of it last.
	noted time.Time
	// Step is true for containers that the Engine makes by itself, for a build.
	Step bool
	// first is the book's turn in which it was noted first, and claimed is true where the
	// request is known that made it.
	first   uint64
	claimed bool
}

// may reports whether a container that does not run may yet, without anybody's asking.
func (c *Container) may() bool { return c.Fresh || c.Restarts }

// settle is how long after a container's start its limit counts in the place of its use:
// programs take their memory in their first minute.
const settle = time.Minute

// A Book keeps the containers and what was promised to requests under way.
type Book struct {
	now func() time.Time

	mu sync.Mutex
	// turn numbers promises and containers in the order in which they came.
	turn     uint64
	accounts map[string]*account
	owner    map[string]*account
	// changed counts what was noted of a container by itself, so that an older answer of
	// the Engine does not undo it.
	changed map[string]uint64
	// synced is closed while all containers are noted, which known says too.
	synced chan struct{}
	known  bool
}

// An account is one user's.
type account struct {
	// deciding is held while a decision is made.
	deciding sync.Mutex

	containers map[string]*Container
	promises   map[*promise]struct{}
	refused    policy.Verdict
	refusedAt  time.Time
}

// A promise is what a request under way was given.
type promise struct {
	turn   uint64
	memory int64
	gpus   int
	// instead is the container whose start it is for: it counts in the place of what
	// that container is down for.
	instead string
	// arrives is true where a container comes of it, build where steps do.
	arrives, build bool
}

// NewBook returns an empty book.
func NewBook(now func() time.Time) *Book {
	return &Book{now: now, accounts: make(map[string]*account), owner: make(map[string]*account), changed: make(map[string]uint64), synced: make(chan struct{})}
}

// account returns a user's; b.mu is held.
func (b *Book) account(user string) *account {
	a := b.accounts[user]
	if a == nil {
		a = &account{containers: make(map[string]*Container), promises: make(map[*promise]struct{})}
		b.accounts[user] = a
	}
	return a
}

// Version is what Set wants to hear of a container that was asked for.
func (b *Book) Version(id string) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed[id]
}

// Set notes what the Engine says of a container, unless something was noted since
// version. It reports whether it did.
func (b *Book) Set(c Container, version uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed[c.ID] != version {
		return false
	}
	b.put(c)
	return true
}

// put notes a container; b.mu is held.
func (b *Book) put(c Container) {
	b.turn++
	c.first = b.turn
	if was := b.owner[c.ID]; was != nil {
		old := was.containers[c.ID]
		c.first, c.claimed = old.first, old.claimed || c.claimed
		delete(was.containers, c.ID)
	}
	delete(b.owner, c.ID)
	if c.User == "" {
		return
	}
	c.noted = b.now()
	a := b.account(c.User)
	a.containers[c.ID] = &c
	b.owner[c.ID] = a
}

// note notes a container by itself; b.mu is held.
func (b *Book) note(c Container) {
	b.changed[c.ID]++
	b.put(c)
}

// Gone says that a container is no more.
func (b *Book) Gone(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.owner[id]; a != nil {
		delete(a.containers, id)
		delete(b.owner, id)
	}
	// An answer about it may be on its way.
	b.changed[id]++
}

// Keep forgets the containers that are not among those that existed at a time.
func (b *Book) Keep(existed func(id string) bool, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, a := range b.owner {
		if !existed(id) && a.containers[id].noted.Before(at) {
			delete(a.containers, id)
			delete(b.owner, id)
		}
	}
	for id := range b.changed {
		if b.owner[id] == nil {
			delete(b.changed, id)
		}
	}
}

// Synced says that all containers were noted; Ready is closed from then on, until Lost
// says that nobody tells any more what becomes of them.
func (b *Book) Synced() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known {
		b.known = true
		close(b.synced)
	}
}

// Lost undoes Synced.
func (b *Book) Lost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known {
		b.known, b.synced = false, make(chan struct{})
	}
}

// Ready is closed while the book is true.
func (b *Book) Ready() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.synced
}

// Container returns what is known of one.
func (b *Book) Container(id string) (Container, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.owner[id]; a != nil {
		return *a.containers[id], true
	}
	return Container{}, false
}

// Containers returns a user's.
func (b *Book) Containers(user string) []Container {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.accounts[user]
	if a == nil {
		return nil
	}
	list := make([]Container, 0, len(a.containers))
	for _, c := range a.containers {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(x, y Container) int {
		if n := x.Began.Compare(y.Began); n != 0 {
			return n
		}
		if x.ID < y.ID {
			return -1
		}
		return 1
	})
	return list
}

// standing adds up what a user has beside the container except, which is being decided
// about. own tells what a container uses by itself. b.mu is held.
func (b *Book) standing(a *account, except string, own func(id string) int64) policy.Standing {
	var (
		s            policy.Standing
		steps, build int64
	)
	promised := make(map[string]bool)
	for p := range a.promises {
		promised[p.instead] = true
	}
	kept := a.kept()
	for id, c := range a.containers {
		if !c.Step {
			s.Containers++
			if c.Running {
				s.Running++
			}
		}
		if id == except || promised[id] {
			continue
		}
		if c.GPUs.Any() && (c.Running || c.may()) {
			s.GPUs += float64(c.GPUs.Count)
			s.Holders = append(s.Holders, holder(c))
		}
		var pending, committed int64
		switch {
		case c.Running && b.now().Sub(c.Began) < settle:
			pending, committed = max(0, c.Memory-own(id)), c.Memory
		case c.Running:
			committed = c.Memory
		case c.may():
			pending, committed = c.Memory, c.Memory
		}
		if c.Step {
			// A build was promised what its steps take.
			steps += pending
			continue
		}
		s.Pending += pending
		s.Committed += committed
	}
	for p := range a.promises {
		if p.instead != "" && p.instead == except {
			// Two starts of one container start it once.
			continue
		}
		if kept[p] {
			continue
		}
		s.GPUs += float64(p.gpus)
		if p.arrives {
			s.Arriving++
		}
		if p.build {
			build += p.memory
			continue
		}
		pending, committed := p.memory, p.memory
		if c := a.containers[p.instead]; c != nil {
			// Its limit may have been raised meanwhile.
			committed = max(committed, c.Memory)
			pending = committed
			if c.Running {
				pending = max(0, committed-own(c.ID))
			} else {
				s.Starting++
			}
		}
		s.Pending += pending
		s.Committed += committed
	}
	s.Pending += max(build, steps)
	s.Committed += max(build, steps)
	slices.Sort(s.Holders)
	return s
}

// kept are the promises whose containers are in the book before the answer is that tells
// which they are: the Engine tells of a container before it answers its maker.
func (a *account) kept() map[*promise]bool {
	var arriving []*promise
	for p := range a.promises {
		if p.arrives {
			arriving = append(arriving, p)
		}
	}
	if len(arriving) == 0 {
		return nil
	}
	// The latest may have the fewest.
	slices.SortFunc(arriving, func(x, y *promise) int { return cmp.Compare(y.turn, x.turn) })
	kept, taken := make(map[*promise]bool), make(map[string]bool)
	for _, p := range arriving {
		for id, c := range a.containers {
			if !taken[id] && !c.claimed && !c.Step && c.first > p.turn && c.Memory == p.memory && c.GPUs.Count == p.gpus {
				kept[p], taken[id] = true, true
				break
			}
		}
	}
	return kept
}

func holder(c *Container) string {
	name := c.Name
	if name == "" {
		name = c.ID[:min(12, len(c.ID))]
	}
	if c.GPUs.All {
		return name + " (all)"
	}
	return name
}
