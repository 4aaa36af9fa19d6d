// Package quota knows what each user's containers hold of the machine, and decides
// whether one more fits. Decisions about one user are made one after the other, so that
// what fits once is not given twice.
package quota

import (
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
	// noted is when the book heard of it last, raised when of a larger limit, and rise by
	// how much that one was larger.
	noted, raised time.Time
	rise          int64
	// first is the book's turn in which it was noted first, and claimed is true where the
	// request is known that made it.
	first   uint64
	claimed bool
	// Step is true for containers that the Engine makes by itself, for a build.
	Step bool
}

// may reports whether a container that does not run may yet, without anybody's asking.
func (c *Container) may() bool { return c.Fresh || c.Restarts }

// settle is how long after a container's start its limit counts in the place of its use, and
// how long a rise of the limit counts beside it: programs take their memory in their first
// minute.
const settle = time.Minute

// young reports whether a container's use says little yet.
func (c *Container) young(now time.Time) bool { return c.Running && now.Sub(c.Began) < settle }

// risen is by how much the limit rose of late.
func (c *Container) risen(now time.Time) int64 {
	if now.Sub(c.raised) < settle {
		return c.rise
	}
	return 0
}

// weight is what counts of a container's memory, each where it has no limit.
func (c *Container) weight(each int64) int64 {
	if c.Memory > 0 {
		return c.Memory
	}
	return each
}

// A Book keeps the containers and what was promised to requests under way.
type Book struct {
	now func() time.Time

	mu sync.Mutex
	// turn numbers promises and containers in the order in which they came.
	turn     uint64
	accounts map[string]*account
	owner    map[string]*account
	// changed says by when something was noted of a container, in steps, so that an older
	// answer of the Engine does not undo it. What it does not have is as old as floor.
	changed     map[string]uint64
	step, floor uint64
	// again has the Engine asked about a container of which a request was noted: it may
	// have died meanwhile. It is called with mu held.
	again func(id string)
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

// NewBook returns an empty book.
func NewBook(now func() time.Time) *Book {
	return &Book{
		now: now, accounts: make(map[string]*account), owner: make(map[string]*account), changed: make(map[string]uint64),
		again: func(string) {}, synced: make(chan struct{}),
	}
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
	return b.version(id)
}

// version needs b.mu.
func (b *Book) version(id string) uint64 {
	if v, known := b.changed[id]; known {
		return v
	}
	return b.floor
}

// touch makes older answers about a container void; b.mu is held.
func (b *Book) touch(id string) {
	b.step++
	b.changed[id] = b.step
}

// Set notes what the Engine says of a container, unless something was noted since
// version. It reports whether it did.
func (b *Book) Set(c Container, version uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.version(c.ID) != version {
		return false
	}
	// Two answers may overtake each other.
	b.touch(c.ID)
	b.put(c)
	return true
}

// put notes a container; b.mu is held.
func (b *Book) put(c Container) {
	now := b.now()
	b.turn++
	c.first = b.turn
	if a := b.owner[c.ID]; a != nil {
		was := a.containers[c.ID]
		c.first, c.claimed = was.first, was.claimed || c.claimed
		c.raised, c.rise = was.raised, was.risen(now)
		if was.Memory > 0 {
			// No limit is no less than one.
			if c.rise = max(0, c.rise+c.Memory-was.Memory); c.Memory > was.Memory {
				c.raised = now
			}
		}
		delete(a.containers, c.ID)
	}
	delete(b.owner, c.ID)
	if c.User == "" {
		return
	}
	c.noted = now
	a := b.account(c.User)
	a.containers[c.ID] = &c
	b.owner[c.ID] = a
}

// note notes what a request made of a container; b.mu is held.
func (b *Book) note(c Container) {
	b.touch(c.ID)
	b.put(c)
	b.again(c.ID)
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
	b.touch(id)
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
	b.step++
	b.floor = b.step
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
