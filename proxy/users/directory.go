package users

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/units"
)

// A Lister enumerates accounts.
type Lister interface {
	All() ([]Account, error)
}

// A Finder looks single accounts up. Errors: ErrUnknown where there is none.
type Finder interface {
	ByUID(uid uint32) (Account, error)
	ByName(name string) (Account, error)
	InAnyGroup(a Account, groups []string) (bool, error)
}

// A Source is both; *NSS is the one on a server.
type Source interface {
	Lister
	Finder
}

// Rules say who is served and as what. They are root's configuration.
type Rules struct {
	// Only, where not empty, are the users who are served; NSS is then not
	// enumerated and the range below does not matter.
	Only []Account
	// UIDMin and UIDMax bound, both included, the uids of login users.
	UIDMin, UIDMax uint32
	// Users and Groups are served whatever their uid.
	Users, Groups []string
	// Exclude are never served.
	Exclude []string
	// AdminUsers and AdminGroups name who no rule applies to.
	AdminUsers, AdminGroups []string
	// GroupOf returns a user's limits group; in reports whether the user belongs to one
	// of the named groups of the system. Its error is that of in.
	GroupOf func(user string, in func(groups []string) (bool, error)) (string, error)
	// ModeOf returns how far the rules are enforced for a user of a group.
	ModeOf func(user, group string) policy.Mode
	// ProfileOf returns what a user's containers may ask of the host; nil where that
	// is nothing.
	ProfileOf func(user, group string) *policy.Profile
}

// How long answers of NSS about users who cannot be enumerated are believed.
const (
	keepFound   = time.Minute
	keepUnknown = 10 * time.Second
	// maxCached bounds the answers kept, since any uid can ask.
	maxCached = 1 << 16
)

// A Directory says who users are. Refresh brings it up to date; the look-ups are
// answered from memory or, for users who cannot be enumerated, from a cache.
type Directory struct {
	source Source
	now    func() time.Time

	mu    sync.Mutex
	rules Rules
	// generation counts refreshes.
	generation int
	listed     map[uint32]Account
	byName     map[string]uint32
	// admins and subjects are kept by uid.
	subjects map[uint32]policy.Subject
	cache    map[uint32]cached
	slices   map[uint32]string
}

// A standing is what the rules make of an account.
type standing struct {
	served, admin bool
	// group is the limits group of who is served.
	group string
}

type cached struct {
	account  Account
	standing standing
	err      error
	until    time.Time
}

// NewDirectory returns a Directory that knows nobody until Refresh.
func NewDirectory(source Source, now func() time.Time) *Directory {
	return &Directory{source: source, now: now}
}

// Listed returns the users who have a socket of their own, by name.
func (d *Directory) Listed() []Account {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Account, 0, len(d.listed))
	for _, a := range d.listed {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Refresh reads who is served. On an error the directory stays as it was.
func (d *Directory) Refresh(rules Rules) error {
	all := rules.Only
	if len(all) == 0 {
		var err error
		if all, err = d.source.All(); err != nil {
			return err
		}
	}
	listed := make(map[uint32]Account)
	standings := make(map[uint32]standing)
	named := make(map[string]bool)
	for _, a := range all {
		if _, twice := listed[a.UID]; twice || named[a.Name] {
			// Two names of one uid are one user, by the name that comes first; so are
			// two uids of one name.
			continue
		}
		as, err := d.judge(rules, a)
		if err != nil {
			return err
		}
		if as.served {
			listed[a.UID] = a
			named[a.Name] = true
			standings[a.UID] = as
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules, d.listed = rules, listed
	d.generation++
	d.cache = make(map[uint32]cached)
	d.byName = make(map[string]uint32, len(listed))
	d.subjects = make(map[uint32]policy.Subject, len(listed))
	known := make([]units.User, 0, len(listed))
	for uid, a := range listed {
		d.byName[a.Name] = uid
		known = append(known, units.User{Name: a.Name, UID: uid})
	}
	d.slices = units.Slices(known)
	for uid, a := range listed {
		d.subjects[uid] = d.subject(a, standings[uid])
	}
	return nil
}

// judge returns what the rules make of an account.
func (d *Directory) judge(rules Rules, a Account) (as standing, err error) {
	if slices.Contains(rules.Exclude, a.Name) || a.UID == 0 || a.Name == "" {
		return standing{}, nil
	}
	as.served = len(rules.Only) > 0 || slices.Contains(rules.Users, a.Name) ||
		a.UID >= rules.UIDMin && a.UID <= rules.UIDMax && canLogIn(a.Shell)
	if !as.served {
		if as.served, err = d.source.InAnyGroup(a, rules.Groups); err != nil {
			return standing{}, err
		}
	}
	if !as.served {
		return standing{}, nil
	}
	as.admin = slices.Contains(rules.AdminUsers, a.Name)
	if !as.admin && len(rules.Only) == 0 {
		if as.admin, err = d.source.InAnyGroup(a, rules.AdminGroups); err != nil {
			return standing{}, err
		}
	}
	as.group, err = rules.GroupOf(a.Name, func(groups []string) (bool, error) { return d.member(rules, a, groups) })
	return as, err
}

// member reports whether an account belongs to one of the named groups of the system.
func (d *Directory) member(rules Rules, a Account, groups []string) (bool, error) {
	if len(rules.Only) > 0 {
		// Who is named without an account has a gid that may be a stranger's.
		known, err := d.source.ByName(a.Name)
		if errors.Is(err, ErrUnknown) || err == nil && known.UID != a.UID {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return d.source.InAnyGroup(a, groups)
}

// canLogIn reports whether a shell is one to log in with.
func canLogIn(shell string) bool {
	base := filepath.Base(shell)
	return base != "nologin" && base != "false"
}

// subject makes the subject of an account. d.mu is held.
func (d *Directory) subject(a Account, as standing) policy.Subject {
	s := policy.Subject{
		User: a.Name, UID: a.UID, GID: a.GID, Home: a.Home, Group: as.group, Slice: d.slices[a.UID],
		Admin: as.admin, Mode: d.rules.ModeOf(a.Name, as.group),
	}
	if d.rules.ProfileOf != nil {
		s.Profile = d.rules.ProfileOf(a.Name, as.group)
	}
	return s
}

// ByName returns the subject of a user who is served.
func (d *Directory) ByName(name string) (policy.Subject, error) {
	d.mu.Lock()
	uid, ok := d.byName[name]
	_, listed := d.listed[uid]
	s := d.subjects[uid]
	only := len(d.rules.Only) > 0
	d.mu.Unlock()
	switch {
	case ok && listed:
		return s, nil
	case ok:
		// The answer about a user who cannot be enumerated expires.
		s, err := d.ByUID(uid)
		if err == nil && s.User != name {
			return policy.Subject{}, fmt.Errorf("user %q is not served here", name)
		}
		return s, err
	}
	if !only {
		// A user who cannot be enumerated and has not come by uid yet.
		if a, err := d.source.ByName(name); err == nil && a.Name == name {
			return d.ByUID(a.UID)
		}
	}
	return policy.Subject{}, fmt.Errorf("user %q is not served here", name)
}

// ByUID returns the subject of a uid that is served.
func (d *Directory) ByUID(uid uint32) (policy.Subject, error) {
	d.mu.Lock()
	_, listed := d.listed[uid]
	s := d.subjects[uid]
	c, hit := d.cache[uid]
	rules, generation := d.rules, d.generation
	d.mu.Unlock()
	switch {
	case listed:
		return s, nil
	case hit && c.err != nil && d.now().Before(c.until):
		return policy.Subject{}, c.err
	case hit && d.now().Before(c.until):
		return s, nil
	}
	// NSS is asked without the lock: a directory server may take its time.
	c = d.lookUp(rules, uid)
	d.mu.Lock()
	if generation != d.generation {
		// The rules are others by now.
		d.mu.Unlock()
		return d.ByUID(uid)
	}
	defer d.mu.Unlock()
	if len(d.cache) >= maxCached {
		d.cache = make(map[uint32]cached)
	}
	d.cache[uid] = c
	if c.err != nil {
		return policy.Subject{}, c.err
	}
	if _, known := d.slices[uid]; !known {
		taken := make(map[string]bool, len(d.slices))
		for _, slice := range d.slices {
			taken[slice] = true
		}
		d.slices[uid] = units.Slice(units.User{Name: c.account.Name, UID: uid}, taken)
	}
	s = d.subject(c.account, c.standing)
	d.subjects[uid] = s
	d.byName[s.User] = uid
	return s, nil
}

// lookUp asks NSS about a uid that is not listed.
func (d *Directory) lookUp(rules Rules, uid uint32) cached {
	until := d.now().Add(keepUnknown)
	notServed := fmt.Errorf("uid %d is not served here", uid)
	if len(rules.Only) > 0 {
		return cached{err: notServed, until: until}
	}
	a, err := d.source.ByUID(uid)
	if errors.Is(err, ErrUnknown) {
		return cached{err: notServed, until: until}
	}
	if err != nil {
		return cached{err: err, until: until}
	}
	as, err := d.judge(rules, a)
	switch {
	case err != nil:
		return cached{err: err, until: until}
	case !as.served:
		return cached{err: fmt.Errorf("user %s (uid %d) is not served here", a.Name, uid), until: until}
	}
	return cached{account: a, standing: as, until: d.now().Add(keepFound)}
}

// BySlice returns the name of the known user whose slice this is, or "".
func (d *Directory) BySlice(slice string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid, s := range d.slices {
		if s == slice {
			return d.subjects[uid].User
		}
	}
	return ""
}
