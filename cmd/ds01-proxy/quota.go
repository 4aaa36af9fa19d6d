package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/quota"
	"github.com/ds01/ds01-proxy/units"
)

type quotaConfig struct {
	Accounting string `yaml:"accounting"`
	Count      string `yaml:"count"`
	PageCache  string `yaml:"page_cache"`
	Slices     string `yaml:"slices"`
}

// choices are the values of the keys of quota.
func (q *quotaConfig) choices() []choice {
	return []choice{
		{"accounting", q.Accounting, []string{"usage", "committed"}},
		{"count", q.Count, []string{"all", "running"}},
		{"page_cache", q.PageCache, []string{"active", "all"}},
		{"slices", q.Slices, []string{"transient", "file", "none"}},
	}
}

type choice struct {
	key, value string
	allowed    []string
}

// quotas make the keeper of users' quotas and the feed that tells it of containers.
func (d *daemon) quotas(c *config, client *engine.Client) (*quota.Keeper, error) {
	tree, err := cgroupstat.System()
	if err != nil {
		return nil, err
	}
	reader, err := cgroupstat.NewReader(tree)
	if err != nil {
		return nil, err
	}
	accounting := policy.AccountUsage
	if c.Quota.Accounting == "committed" {
		accounting = policy.AccountCommitted
	}
	book := quota.NewBook(time.Now)
	d.feed = quota.NewFeed(book, func(ctx context.Context, id string) (quota.Container, error) { return d.look(ctx, client, id) }, d.log.Named("quota"))
	d.index.Changed, d.index.Listed, d.index.Lost = d.feed.Changed, d.feed.Listed, d.feed.Lost
	d.slices = &userSlices{
		mode: c.Quota.Slices, state: d.index.State, reader: reader, now: time.Now, known: make(map[string]*slice),
		limiter: func() (*cgroupstat.Limiter, error) { return cgroupstat.NewLimiter(tree) },
	}
	return &quota.Keeper{
		Unknown: func(user string) bool {
			return slices.ContainsFunc(d.feed.Unknown(), func(id string) bool {
				_, known := book.Container(id)
				owner, _ := d.index.OwnerOf(id)
				return !known && owner == user
			})
		},
		Book: book, Reader: reader, LimitsOf: d.limits.Of, Accounting: accounting, CountRunning: c.Quota.Count == "running",
		RawUsage: c.Quota.PageCache == "all", OnError: switchOf(c.OnCgroupError), Now: time.Now,
		SliceOf: func(s *policy.Subject) string { return units.CgroupPath(s.Group, s.Slice) },
		ScopeOf: d.scopeOf,
	}, nil
}

// scopeOf is the cgroup of a container of a user's.
func (d *daemon) scopeOf(s *policy.Subject, id string) string {
	path := units.CgroupPath(s.Group, s.Slice)
	// Asked for and known by whoever came here.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if st, err := d.index.State(ctx); err == nil && st.CgroupDriver == "systemd" {
		return path + "/docker-" + id + ".scope"
	}
	return path + "/" + id
}

// look asks what a container holds, and whose it is.
func (d *daemon) look(ctx context.Context, client *engine.Client, id string) (quota.Container, error) {
	st, err := d.index.State(ctx)
	if err != nil {
		return quota.Container{}, err
	}
	h, err := client.Holding(ctx, id, st.Host())
	if errors.Is(err, engine.ErrNotFound) {
		return quota.Container{}, fmt.Errorf("%w: %w", quota.ErrGone, err)
	}
	if err != nil {
		return quota.Container{}, err
	}
	owner, known := d.index.OwnerOf(id)
	if !known {
		owner = h.Owner
	}
	if owner == "" && h.Step {
		owner = d.index.UserOfParent(h.CgroupParent)
	}
	return quota.Container{
		ID: id, Name: h.Name, User: owner, Memory: h.Memory, Running: h.Running, Fresh: h.Fresh, Restarts: h.Restarts,
		Began: h.Began, GPUs: h.GPUs, Step: h.Step,
	}, nil
}

// userSlices are the users' parts of the machine.
type userSlices struct {
	// mode is transient, file or none, where systemd keeps them.
	mode    string
	state   func(ctx context.Context) (*engine.State, error)
	reader  *cgroupstat.Reader
	limiter func() (*cgroupstat.Limiter, error)
	now     func() time.Time

	mu      sync.Mutex
	systemd *units.Systemd
	known   map[string]*slice
}

// A slice is what one has been given.
type slice struct {
	mu    sync.Mutex
	has   string
	until time.Time
}

// How long a slice is believed to have what it was given: others may remove it. Asking
// systemd takes longer than writing a file.
const (
	writtenHold = time.Minute
	systemdHold = 10 * time.Minute
)

// Ensure makes sure that a user's slice is there with its limits. Where rules are not
// enforced it is left alone: the kernel would enforce them.
func (l *userSlices) Ensure(ctx context.Context, s *policy.Subject, a *policy.Aggregate) error {
	if l.mode == "none" || s.Mode != policy.ModeFull {
		return nil
	}
	if s.Admin {
		a = nil
	}
	wants := words(a)
	l.mu.Lock()
	one := l.known[s.Group+"/"+s.Slice]
	if one == nil {
		one = &slice{}
		l.known[s.Group+"/"+s.Slice] = one
	}
	l.mu.Unlock()
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.has == wants && l.now().Before(one.until) {
		return nil
	}
	hold, err := l.set(ctx, s, a)
	if err != nil {
		one.has = ""
		return fmt.Errorf("limits of %s's slice: %w", s.User, err)
	}
	one.has, one.until = wants, l.now().Add(hold)
	return nil
}

// words tell aggregates apart.
func words(a *policy.Aggregate) string {
	if a == nil {
		return "none"
	}
	text := "limits"
	for _, n := range []*int64{a.CPUQuota, a.MemoryMax, a.MemoryHigh, a.TasksMax} {
		if n == nil {
			text += " -"
		} else {
			text += fmt.Sprintf(" %d", *n)
		}
	}
	return text
}

// set gives a slice its limits, and says for how long to believe that.
func (l *userSlices) set(ctx context.Context, s *policy.Subject, a *policy.Aggregate) (time.Duration, error) {
	st, err := l.state(ctx)
	if err != nil {
		return 0, err
	}
	if st.CgroupDriver == "systemd" {
		return systemdHold, l.keeper().Ensure(ctx, s.Group, s.Slice, a)
	}
	path := units.CgroupPath(s.Group, s.Slice)
	if a == nil {
		// What is not there has no limits that somebody left.
		if u, err := l.reader.Read(path); err == nil && !u.Exists {
			return writtenHold, nil
		}
	}
	limiter, err := l.limiter()
	if err != nil {
		return 0, err
	}
	return writtenHold, limiter.Apply(path, a)
}

// keeper is systemd, by D-Bus.
func (l *userSlices) keeper() *units.Systemd {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.systemd == nil {
		l.systemd = &units.Systemd{Dial: units.DialSystemd}
		if l.mode == "file" {
			l.systemd.Dir = "/etc/systemd/system"
		}
	}
	return l.systemd
}

// sliceAll gives every user's slice its limits, unless that is under way.
func (d *daemon) sliceAll(ctx context.Context) {
	if !d.slicing.TryLock() {
		return
	}
	defer d.slicing.Unlock()
	var failed error
	for _, account := range d.directory.Listed() {
		s, err := d.directory.ByUID(account.UID)
		if err != nil || ctx.Err() != nil {
			continue
		}
		limits := d.limits.Of(s.User, s.Group)
		if err := d.slices.Ensure(ctx, &s, limits.Aggregate); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil && ctx.Err() == nil {
		d.log.Warn("some users' slices do not have their limits", zap.Error(failed))
	}
}
