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
	Book *Book
	// Unknown reports whether a user has containers that the book does not have since
	// the Engine did not answer about them; nil means that nobody has.
	Unknown func(user string) bool
	Reader  Reader
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
	// Memory is in bytes, 0 for no limit of its own; in an update, 0 leaves it what it is.
	Memory int64
	GPUs   policy.GPUAsk
	// New is true where a container comes of it, Build where it is a build, Unpause where
	// a container only goes on, and Update where one is changed.
	New, Build, Unpause, Update bool
	// Restarts is whether the Engine may start it by itself after an update; nil leaves
	// that as it is.
	Restarts *bool
}

// syncWait is how long a request waits for the first list of containers.
const syncWait = 10 * time.Second

// ErrNotReady means that nobody knows yet what users have.
var ErrNotReady = errors.New("the containers are still being counted; try again in a moment")

// Reserve decides about a request. What it promises counts until the Hold is ended.
func (k *Keeper) Reserve(ctx context.Context, s *policy.Subject, ask Ask) (*Hold, policy.Verdict, error) {
	if err := k.waitFor(ctx, s.User); err != nil {
		return nil, policy.Verdict{}, err
	}
	// The Engine refuses what is negative; until then it must not count against the rest.
	ask.Memory = max(ask.Memory, 0)
	b := k.Book
	b.mu.Lock()
	a := b.account(s.User)
	b.mu.Unlock()
	a.deciding.Lock()
	defer a.deciding.Unlock()
	limits := k.LimitsOf(s.User, s.Group)
	d := decision{
		Gate: policy.Gate{Limits: &limits, Accounting: k.Accounting, CountRunning: k.CountRunning},
		ask:  ask, each: each(&limits),
	}
	verdict := k.attempt(s, a, &d)
	if !verdict.Allowed() && k.Accounting == policy.AccountUsage {
		// The limits of young containers were held against it. What they use by themselves
		// takes longer to read, and is read before the slice: what they take in between
		// counts rather twice than not at all.
		d.own = k.own(s, a, ask.Container)
		verdict = k.attempt(s, a, &d)
	}
	if !verdict.Allowed() {
		b.mu.Lock()
		a.refused, a.refusedAt = verdict, k.Now()
		b.mu.Unlock()
		return nil, verdict, nil
	}
	return &Hold{book: b, a: a, p: d.p, Warning: d.PIDsWarning(d.standing)}, verdict, nil
}

// attempt decides, and makes the promise where the request is allowed.
func (k *Keeper) attempt(s *policy.Subject, a *account, d *decision) policy.Verdict {
	usage, unread := k.read(s, d.Limits)
	k.Book.mu.Lock()
	defer k.Book.mu.Unlock()
	verdict := d.make(k.Book, a, func(st *policy.Standing) { k.fill(st, usage) })
	if verdict.Allowed() && unread != nil && !d.free {
		verdict = policy.UnreadableUsage(unread, k.OnError)
	}
	if verdict.Allowed() {
		k.Book.turn++
		d.p.turn = k.Book.turn
		a.promises[d.p] = struct{}{}
	}
	return verdict
}

// each is what counts of containers that have no limit.
func each(l *policy.Limits) int64 {
	if l.PerContainer.Memory == nil {
		return 0
	}
	return *l.PerContainer.Memory
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

// waitFor waits until a user's containers are known, as far as that is to be had.
func (k *Keeper) waitFor(ctx context.Context, user string) error {
	if err := k.wait(ctx); err != nil {
		return err
	}
	for until := time.Now().Add(syncWait); k.Unknown != nil && k.Unknown(user); {
		if time.Now().After(until) {
			return ErrNotReady
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// wait waits for the first list.
func (k *Keeper) wait(ctx context.Context) error {
	select {
	case <-k.Book.Ready():
		return nil
	default:
	}
	timer := time.NewTimer(syncWait)
	defer timer.Stop()
	select {
	case <-k.Book.Ready():
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

// own is what each young container, and the one with that ID, uses by itself; nothing where
// that cannot be read, so that its whole limit counts. The book is not held meanwhile.
func (k *Keeper) own(s *policy.Subject, a *account, also string) map[string]int64 {
	var young []string
	k.Book.mu.Lock()
	now := k.Book.now()
	for id, c := range a.containers {
		if c.young(now) || c.Running && id == also {
			young = append(young, id)
		}
	}
	k.Book.mu.Unlock()
	own := make(map[string]int64, len(young))
	for _, id := range young {
		if u, err := k.Reader.Read(k.ScopeOf(s, id)); err == nil {
			own[id] = k.counted(u)
		}
	}
	return own
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
	b := k.Book
	b.mu.Lock()
	a := b.account(s.User)
	b.mu.Unlock()
	own := k.own(s, a, "")
	usage, err := k.Reader.Read(k.SliceOf(s))
	if err != nil {
		r.Unread = err.Error()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r.Standing = b.standing(a, "", each(&r.Limits), own)
	k.fill(&r.Standing, usage)
	if !a.refusedAt.IsZero() {
		r.Refused, r.When = a.refused.Message(), a.refusedAt
	}
	return r, nil
}
