package quota

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
)

// A Reader reads what a cgroup uses.
type Reader interface {
	Read(cgroupPath string) (cgroupstat.Usage, error)
}

// A Keeper decides about requests that make or start containers, and remembers what
// it promised to those under way. All fields must be set.
type Keeper struct {
	Book   *Book
	Reader Reader
	// LimitsOf returns the limits of a user of a group.
	LimitsOf func(user, group string) policy.Limits
	// SliceOf is the path of a user's cgroup, and ScopeOf that of one of their
	// containers.
	SliceOf func(s *policy.Subject) string
	ScopeOf func(s *policy.Subject, containerID string) string
	// Accounting and CountRunning are the configuration's.
	Accounting   policy.Accounting
	CountRunning bool
	// RawUsage counts page cache that was not used lately, too.
	RawUsage bool
	// OnError says what happens where use cannot be read.
	OnError policy.Switch
	Now     func() time.Time
}

// An Ask is what a request wants.
type Ask struct {
	// Container is the one that is started or changed; "" where one is made.
	Container string
	// Memory is in bytes, 0 for no limit of its own.
	Memory int64
	GPUs   policy.GPUAsk
	// More is how much larger the limit of a container is to be.
	More int64
	// New is true where a container comes of it, Build where it is a build, and Unpause
	// where one only goes on.
	New, Build, Unpause bool
}

// A Hold is what was promised to a request; nil means nothing.
type Hold struct {
	book *Book
	a    *account
	p    *promise
	// Warning is for the maker of a container.
	Warning string
}

// syncWait is how long a request waits for the first list of containers.
const syncWait = 10 * time.Second

// ErrNotReady means that nobody knows yet what users have.
var ErrNotReady = errors.New("the containers are still being counted; try again in a moment")

// Reserve decides about a request. What it promises counts until the Hold is ended.
func (k *Keeper) Reserve(ctx context.Context, s *policy.Subject, ask Ask) (*Hold, policy.Verdict, error) {
	limits := k.LimitsOf(s.User, s.Group)
	gate := policy.Gate{Limits: &limits, Accounting: k.Accounting, CountRunning: k.CountRunning}
	if err := k.wait(ctx); err != nil {
		return nil, policy.Verdict{}, err
	}
	b := k.Book
	b.mu.Lock()
	a := b.account(s.User)
	b.mu.Unlock()
	a.deciding.Lock()
	defer a.deciding.Unlock()
	usage, unread := k.read(s, &limits)
	b.mu.Lock()
	defer b.mu.Unlock()
	except := ask.Container
	if ask.More > 0 || ask.Unpause {
		except = ""
	}
	standing := b.standing(a, except, func(id string) int64 { return k.own(s, id) })
	k.fill(&standing, usage)
	verdict := k.decide(gate, standing, a.containers[ask.Container], ask)
	if !verdict.Allowed() {
		a.refused, a.refusedAt = verdict, k.Now()
		return nil, verdict, nil
	}
	if unread != nil {
		verdict = policy.UnreadableUsage(unread, k.OnError)
		if !verdict.Allowed() {
			return nil, verdict, nil
		}
	}
	b.turn++
	p := &promise{turn: b.turn, memory: ask.Memory + ask.More, gpus: ask.GPUs.Count, arrives: ask.New, build: ask.Build}
	if c := a.containers[ask.Container]; c != nil && ask.More == 0 && !ask.Unpause {
		// What it holds already is not promised twice.
		p.instead = c.ID
	}
	a.promises[p] = struct{}{}
	return &Hold{book: b, a: a, p: p, Warning: gate.PIDsWarning(standing)}, verdict, nil
}

// decide asks the rules; c is the container that is started or changed, nil without one.
func (k *Keeper) decide(gate policy.Gate, s policy.Standing, c *Container, ask Ask) policy.Verdict {
	pass := policy.Verdict{Outcome: policy.Allow, Rule: "quota"}
	switch {
	case ask.Unpause:
		return gate.Unpause(s)
	case ask.More > 0:
		return gate.Memory(s, ask.More)
	case c != nil && c.Running:
		// It has what it asks for.
		return pass
	case ask.Build:
		return gate.Memory(s, ask.Memory)
	}
	if ask.New || k.CountRunning {
		if v := gate.Containers(s); !v.Allowed() {
			return v
		}
	}
	if v := gate.GPUs(s, ask.GPUs); !v.Allowed() {
		return v
	}
	return gate.Memory(s, ask.Memory)
}

// Changed notes that a container's limit, unless it is 0, and whether it may be started
// by itself, are others.
func (k *Keeper) Changed(id string, memory int64, restarts bool) {
	b := k.Book
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.owner[id]
	if a == nil {
		return
	}
	c := *a.containers[id]
	if memory > 0 {
		c.Memory = memory
	}
	c.Restarts = restarts
	b.note(c)
}

// Container returns what a container holds, and waits a moment for one that is new.
func (k *Keeper) Container(ctx context.Context, id string) (Container, error) {
	if err := k.wait(ctx); err != nil {
		return Container{}, err
	}
	for until := time.Now().Add(syncWait); ; {
		c, known := k.Book.Container(id)
		if known {
			return c, nil
		}
		if time.Now().After(until) {
			return c, ErrNotReady
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// wait waits for a list of all containers where there is none that is kept true.
func (k *Keeper) wait(ctx context.Context) error {
	ready := k.Book.Ready()
	select {
	case <-ready:
		return nil
	default:
	}
	timer := time.NewTimer(syncWait)
	defer timer.Stop()
	select {
	case <-ready:
		return nil
	case <-timer.C:
		return ErrNotReady
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read reads what the user's slice uses, unless nothing would be held against it.
func (k *Keeper) read(s *policy.Subject, limits *policy.Limits) (cgroupstat.Usage, error) {
	if limits.Aggregate == nil {
		return cgroupstat.Usage{}, nil
	}
	usage, err := k.Reader.Read(k.SliceOf(s))
	if err != nil {
		return usage, fmt.Errorf("use of %s's slice: %w", s.User, err)
	}
	return usage, nil
}

func (k *Keeper) fill(s *policy.Standing, u cgroupstat.Usage) {
	s.Current, s.Cache, s.PIDs = u.Memory, u.Cache, u.PIDs
	s.Used = k.counted(u)
}

func (k *Keeper) counted(u cgroupstat.Usage) int64 {
	if k.RawUsage {
		return u.Memory
	}
	return u.Used()
}

// own is what a container uses by itself; nothing where that cannot be read, so that
// its whole limit counts.
func (k *Keeper) own(s *policy.Subject, id string) int64 {
	u, err := k.Reader.Read(k.ScopeOf(s, id))
	if err != nil {
		return 0
	}
	return k.counted(u)
}

// Drop ends a promise of which nothing came.
func (h *Hold) Drop() {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	delete(h.a.promises, h.p)
}

// Made ends a promise: the container that it was for is there.
func (h *Hold) Made(c Container) {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	delete(h.a.promises, h.p)
	c.claimed = true
	switch known := h.a.containers[c.ID]; {
	case known != nil:
		known.claimed = true
	case h.book.changed[c.ID] == 0:
		h.book.note(c)
	default:
		// It is gone already.
	}
}

// Started ends a promise: the container runs from now on.
func (h *Hold) Started(id string) {
	h.change(id, func(c *Container) { c.Running, c.Fresh, c.Began = true, false, h.book.now() })
}

func (h *Hold) change(id string, f func(c *Container)) {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	delete(h.a.promises, h.p)
	if c := h.a.containers[id]; c != nil {
		changed := *c
		f(&changed)
		h.book.note(changed)
	}
}

// A Report is what a user has, and may have.
type Report struct {
	Limits     policy.Limits
	Standing   policy.Standing
	Accounting policy.Accounting
	// Unread is why the use is not known, "" where it is.
	Unread string
	// Refused is the last refusal, and When its time.
	Refused string
	When    time.Time
}

// Report says what a user has.
func (k *Keeper) Report(ctx context.Context, s *policy.Subject) (Report, error) {
	if err := k.wait(ctx); err != nil {
		return Report{}, err
	}
	r := Report{Limits: k.LimitsOf(s.User, s.Group), Accounting: k.Accounting}
	usage, err := k.Reader.Read(k.SliceOf(s))
	if err != nil {
		r.Unread = err.Error()
	}
	b := k.Book
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(s.User)
	r.Standing = b.standing(a, "", func(id string) int64 { return k.own(s, id) })
	k.fill(&r.Standing, usage)
	if !a.refusedAt.IsZero() {
		r.Refused, r.When = a.refused.Message(), a.refusedAt
	}
	return r, nil
}
