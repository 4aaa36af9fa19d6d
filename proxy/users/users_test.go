package users

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/policy"
)

// A fakeSource is a passwd and group database that counts what it is asked.
type fakeSource struct {
	// listed are enumerated; hidden are found by uid and name only.
	listed, hidden []Account
	// members are the users of each group.
	members map[string][]string
	// err is the answer to everything, where set.
	err error

	alls, byUIDs, byNames, groups int
}

func (f *fakeSource) All() ([]Account, error) {
	f.alls++
	return slices.Clone(f.listed), f.err
}

func (f *fakeSource) ByUID(uid uint32) (Account, error) {
	f.byUIDs++
	return f.one(func(a Account) bool { return a.UID == uid })
}

func (f *fakeSource) ByName(name string) (Account, error) {
	f.byNames++
	return f.one(func(a Account) bool { return a.Name == name })
}

func (f *fakeSource) one(is func(Account) bool) (Account, error) {
	if f.err != nil {
		return Account{}, f.err
	}
	for _, a := range slices.Concat(f.listed, f.hidden) {
		if is(a) {
			return a, nil
		}
	}
	return Account{}, ErrUnknown
}

func (f *fakeSource) InAnyGroup(a Account, groups []string) (bool, error) {
	f.groups++
	for _, g := range groups {
		if slices.Contains(f.members[g], a.Name) {
			return true, f.err
		}
	}
	return false, f.err
}

// asked is how many questions of any kind came.
func (f *fakeSource) asked() int { return f.alls + f.byUIDs + f.byNames + f.groups }

func account(name string, uid uint32) Account {
	return Account{Name: name, UID: uid, GID: uid, Home: "/home/" + name, Shell: "/bin/bash"}
}

func withShell(a Account, shell string) Account {
	a.Shell = shell
	return a
}

// rules are those of the tests: uids 1000 to 2000, group "g-<name>".
func rules(change func(*Rules)) Rules {
	r := Rules{
		UIDMin: 1000, UIDMax: 2000, AdminGroups: []string{"adm"},
		GroupOf: func(user string, _ func([]string) (bool, error)) (string, error) { return "g-" + user, nil },
		ModeOf: func(user, group string) policy.Mode {
			if user == "watched" && group == "g-watched" {
				return policy.ModeMonitoring
			}
			return policy.ModeFull
		},
	}
	if change != nil {
		change(&r)
	}
	return r
}

// A clock stands still until it is told to move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func refreshed(t *testing.T, src *fakeSource, r Rules) (*Directory, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}
	d := NewDirectory(src, c.Now)
	if err := d.Refresh(r); err != nil {
		t.Fatal(err)
	}
	return d, c
}

func names(accounts []Account) string {
	var out []string
	for _, a := range accounts {
		out = append(out, a.Name)
	}
	return strings.Join(out, " ")
}

func TestWhoIsListed(t *testing.T) {
	for _, r := range []struct {
		name   string
		listed []Account
		change func(*Rules)
		want   string
	}{
		{"range, both ends included", []Account{account("a", 999), account("b", 1000), account("c", 1500), account("d", 2000), account("e", 2001)}, nil, "b c d"},
		{"by name", []Account{account("zoe", 1001), account("ann", 1002)}, nil, "ann zoe"},
		{"root never", []Account{account("root", 0), account("a", 1001)}, func(r *Rules) { r.UIDMin, r.Users = 0, []string{"root"} }, "a"},
		{"another root never", []Account{account("toor", 0)}, func(r *Rules) { r.UIDMin, r.Groups, r.AdminUsers = 0, []string{"adm"}, []string{"toor"} }, ""},
		{"no name", []Account{account("", 1001)}, nil, ""},
		{"nologin", []Account{withShell(account("a", 1001), "/usr/sbin/nologin"), withShell(account("b", 1002), "/sbin/nologin")}, nil, ""},
		{"false", []Account{withShell(account("a", 1001), "/bin/false")}, nil, ""},
		{"no shell means sh", []Account{withShell(account("a", 1001), "")}, nil, "a"},
		{"a shell that only sounds so", []Account{withShell(account("a", 1001), "/opt/nologin/zsh"), withShell(account("b", 1002), "/bin/falsetto")}, nil, "a b"},
		{"included below the range", []Account{account("svc", 500), account("other", 501)}, func(r *Rules) { r.Users = []string{"svc"} }, "svc"},
		{"included above the range", []Account{account("svc", 70000)}, func(r *Rules) { r.Users = []string{"svc"} }, "svc"},
		{"included without a shell", []Account{withShell(account("svc", 1001), "/bin/false")}, func(r *Rules) { r.Users = []string{"svc"} }, "svc"},
		{"group below the range", []Account{account("boss", 500), account("other", 501)}, func(r *Rules) { r.Groups = []string{"none", "adm"} }, "boss"},
		{"group without a shell", []Account{withShell(account("boss", 1001), "/bin/false")}, func(r *Rules) { r.Groups = []string{"adm"} }, "boss"},
		{"admins are not served for being admins", []Account{account("boss", 500)}, nil, ""},
		{"excluded in range", []Account{account("a", 1001), account("b", 1002)}, func(r *Rules) { r.Exclude = []string{"a"} }, "b"},
		{"excluded wins over included", []Account{account("a", 1001)}, func(r *Rules) { r.Exclude, r.Users = []string{"a"}, []string{"a"} }, ""},
		{"excluded wins over a group", []Account{account("boss", 1001)}, func(r *Rules) { r.Exclude, r.Groups = []string{"boss"}, []string{"adm"} }, ""},
		{"names are compared whole", []Account{account("ab", 500)}, func(r *Rules) { r.Users = []string{"a", "abc", "AB"} }, ""},
		{"two names of one uid", []Account{account("first", 1001), account("second", 1001)}, nil, "first"},
		{"the first name may be excluded", []Account{account("first", 1001), account("second", 1001)}, func(r *Rules) { r.Exclude = []string{"first"} }, "second"},
		{"only", []Account{account("a", 1001)}, func(r *Rules) { r.Only = []Account{account("x", 5), account("y", 99999)} }, "x y"},
		{"only, not root", nil, func(r *Rules) { r.Only = []Account{account("x", 0), account("y", 7)} }, "y"},
		{"only, less excluded", nil, func(r *Rules) { r.Only, r.Exclude = []Account{account("x", 6), account("y", 7)}, []string{"y"} }, "x"},
		{"nobody", nil, nil, ""},
	} {
		src := &fakeSource{listed: r.listed, members: map[string][]string{"adm": {"boss", "toor"}}}
		d, _ := refreshed(t, src, rules(r.change))
		if got := names(d.Listed()); got != r.want {
			t.Errorf("%s: listed %q, want %q", r.name, got, r.want)
		}
	}
}

func TestSubjectsOfTheListed(t *testing.T) {
	src := &fakeSource{
		listed:  []Account{account("alice", 1001), account("boss", 1002), account("chief", 1003), account("watched", 1004), account("first.last", 1005)},
		members: map[string][]string{"adm": {"boss"}},
	}
	d, _ := refreshed(t, src, rules(func(r *Rules) { r.AdminUsers = []string{"chief", "alice2"} }))
	before := src.asked()
	for _, want := range []policy.Subject{
		{User: "alice", UID: 1001, GID: 1001, Home: "/home/alice", Group: "g-alice", Slice: "alice"},
		{User: "boss", UID: 1002, GID: 1002, Home: "/home/boss", Group: "g-boss", Slice: "boss", Admin: true},
		{User: "chief", UID: 1003, GID: 1003, Home: "/home/chief", Group: "g-chief", Slice: "chief", Admin: true},
		{User: "watched", UID: 1004, GID: 1004, Home: "/home/watched", Group: "g-watched", Slice: "watched", Mode: policy.ModeMonitoring},
		{User: "first.last", UID: 1005, GID: 1005, Home: "/home/first.last", Group: "g-first.last", Slice: "first_last"},
	} {
		for range 3 {
			if got, err := d.ByUID(want.UID); err != nil || got != want {
				t.Errorf("uid %d: got %+v, %v; want %+v", want.UID, got, err, want)
			}
			if got, err := d.ByName(want.User); err != nil || got != want {
				t.Errorf("%s: got %+v, %v; want %+v", want.User, got, err, want)
			}
		}
	}
	if n := src.asked() - before; n != 0 {
		t.Errorf("%d look-ups for users who are listed", n)
	}
}

func TestOnlyAsksNobody(t *testing.T) {
	src := &fakeSource{listed: []Account{account("a", 1001)}, members: map[string][]string{"adm": {"x"}}}
	d, _ := refreshed(t, src, rules(func(r *Rules) {
		r.Only, r.AdminUsers = []Account{account("x", 5), account("y", 6)}, []string{"y"}
	}))
	for name, want := range map[string]bool{"x": false, "y": true} {
		if s, err := d.ByName(name); err != nil || s.Admin != want {
			t.Errorf("%s: got %+v, %v; want admin %v", name, s, err, want)
		}
	}
	if s, err := d.ByUID(1001); err == nil {
		t.Errorf("uid 1001 is served as %+v", s)
	}
	if s, err := d.ByName("a"); err == nil {
		t.Errorf("a is served as %+v", s)
	}
	if n := src.asked(); n != 0 {
		t.Errorf("the source was asked %d times", n)
	}
}

func TestByUIDRefuses(t *testing.T) {
	src := &fakeSource{
		listed: []Account{account("root", 0), account("low", 999)},
		hidden: []Account{account("remote", 1500), account("high", 5000), account("gone", 1600), withShell(account("svc", 1700), "/usr/sbin/nologin")},
	}
	d, _ := refreshed(t, src, rules(func(r *Rules) { r.UIDMin, r.Exclude = 1000, []string{"gone"} }))
	for _, r := range []struct {
		uid  uint32
		text string
	}{
		{0, "user root (uid 0) is not served here"},
		{999, "user low (uid 999) is not served here"},
		{5000, "user high (uid 5000) is not served here"},
		{1600, "user gone (uid 1600) is not served here"},
		{1700, "user svc (uid 1700) is not served here"},
		{1800, "uid 1800 is not served here"},
		{65534, "uid 65534 is not served here"},
	} {
		// The second answer comes from the cache and must say the same.
		for range 2 {
			if s, err := d.ByUID(r.uid); err == nil || err.Error() != r.text || s != (policy.Subject{}) {
				t.Errorf("uid %d: got %+v, %v; want %q", r.uid, s, err, r.text)
			}
		}
	}
	for _, name := range []string{"root", "low", "high", "gone", "svc", "nobody-at-all", ""} {
		if s, err := d.ByName(name); err == nil {
			t.Errorf("%q is served as %+v", name, s)
		}
	}
}

func TestByUIDBelievesAnAnswerForAWhile(t *testing.T) {
	remote := account("remote", 1500)
	src := &fakeSource{hidden: []Account{remote}}
	d, c := refreshed(t, src, rules(nil))
	want := policy.Subject{User: "remote", UID: 1500, GID: 1500, Home: "/home/remote", Group: "g-remote", Slice: "remote"}
	steps := []struct {
		what    string
		change  func()
		advance time.Duration
		uid     uint32
		served  bool
		lookUps int
	}{
		{what: "first call", uid: 1500, served: true, lookUps: 1},
		{what: "again", uid: 1500, served: true, lookUps: 0},
		{what: "just before it expires", change: func() { src.hidden = nil }, advance: keepFound - time.Nanosecond, uid: 1500, served: true, lookUps: 0},
		{what: "expired, account deleted", advance: time.Nanosecond, uid: 1500, served: false, lookUps: 1},
		{what: "unknown, again", uid: 1500, served: false, lookUps: 0},
		{what: "just before that expires", change: func() { src.hidden = []Account{remote} }, advance: keepUnknown - time.Nanosecond, uid: 1500, served: false, lookUps: 0},
		{what: "expired, account is back", advance: time.Nanosecond, uid: 1500, served: true, lookUps: 1},
		{what: "the directory server fails", change: func() { src.err = errors.New("no LDAP server") }, advance: keepFound, uid: 1500, served: false, lookUps: 1},
		{what: "failure, again", change: func() { src.err = nil }, uid: 1500, served: false, lookUps: 0},
		{what: "failure expired", advance: keepUnknown, uid: 1500, served: true, lookUps: 1},
	}
	for _, s := range steps {
		if s.change != nil {
			s.change()
		}
		c.now = c.now.Add(s.advance)
		before := src.byUIDs
		got, err := d.ByUID(s.uid)
		if (err == nil) != s.served || s.served && got != want {
			t.Errorf("%s: got %+v, %v; want served %v", s.what, got, err, s.served)
		}
		if n := src.byUIDs - before; n != s.lookUps {
			t.Errorf("%s: %d look-ups, want %d", s.what, n, s.lookUps)
		}
	}
	if names(d.Listed()) != "" {
		t.Errorf("listed %q; a user who cannot be enumerated has no socket", names(d.Listed()))
	}
}

func TestByUIDTellsFailureFromUnknown(t *testing.T) {
	src := &fakeSource{hidden: []Account{account("remote", 1500)}}
	d, _ := refreshed(t, src, rules(nil))
	src.err = errors.New("no LDAP server")
	if s, err := d.ByUID(1500); !errors.Is(err, src.err) {
		t.Errorf("got %+v, %v; want %v", s, err, src.err)
	}
}

func TestUnlistedAdminsAndGroups(t *testing.T) {
	src := &fakeSource{
		hidden:  []Account{account("boss", 1500), account("svc", 300), account("watched", 1501)},
		members: map[string][]string{"adm": {"boss"}, "lab": {"svc"}},
	}
	d, _ := refreshed(t, src, rules(func(r *Rules) { r.Groups = []string{"lab"} }))
	for _, want := range []policy.Subject{
		{User: "boss", UID: 1500, GID: 1500, Home: "/home/boss", Group: "g-boss", Slice: "boss", Admin: true},
		{User: "svc", UID: 300, GID: 300, Home: "/home/svc", Group: "g-svc", Slice: "svc"},
		{User: "watched", UID: 1501, GID: 1501, Home: "/home/watched", Group: "g-watched", Slice: "watched", Mode: policy.ModeMonitoring},
	} {
		if got, err := d.ByUID(want.UID); err != nil || got != want {
			t.Errorf("uid %d: got %+v, %v; want %+v", want.UID, got, err, want)
		}
	}
}

func TestByNameOfTheUnlisted(t *testing.T) {
	src := &fakeSource{hidden: []Account{account("remote", 1500)}}
	d, _ := refreshed(t, src, rules(nil))
	want := policy.Subject{User: "remote", UID: 1500, GID: 1500, Home: "/home/remote", Group: "g-remote", Slice: "remote"}
	for range 3 {
		if got, err := d.ByName("remote"); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	if src.byNames > 1 || src.byUIDs > 1 {
		t.Errorf("%d look-ups by name and %d by uid; want one each at most", src.byNames, src.byUIDs)
	}
}

// Some directory services find "Remote" and "remote@uni" too and answer with
// the one spelling that owner labels use.
func TestByNameWantsTheSpellingOfNSS(t *testing.T) {
	src := &spelling{fakeSource{hidden: []Account{account("remote", 1500)}}}
	d := NewDirectory(src, time.Now)
	if err := d.Refresh(rules(nil)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Remote", "REMOTE"} {
		if s, err := d.ByName(name); err == nil {
			t.Errorf("%s is served as %+v", name, s)
		}
	}
	if s, err := d.ByName("remote"); err != nil || s.User != "remote" {
		t.Errorf("remote: got %+v, %v", s, err)
	}
}

type spelling struct{ fakeSource }

func (s *spelling) ByName(name string) (Account, error) {
	return s.fakeSource.ByName(strings.ToLower(name))
}

func TestSlicesAreNobodyElses(t *testing.T) {
	src := &fakeSource{
		listed: []Account{account("a.b", 1003), account("a-b", 1001)},
		hidden: []Account{account("a b", 1500)},
	}
	d, _ := refreshed(t, src, rules(nil))
	taken := make(map[string]uint32)
	for _, uid := range []uint32{1001, 1003, 1500, 1001, 1003, 1500} {
		s, err := d.ByUID(uid)
		if err != nil {
			t.Fatal(err)
		}
		if other, is := taken[s.Slice]; is && other != uid {
			t.Errorf("uid %d and uid %d share slice %q", uid, other, s.Slice)
		}
		taken[s.Slice] = uid
	}
	if s, err := d.ByUID(1001); err != nil || s.Slice != "a_b" {
		t.Errorf("uid 1001: got %+v, %v; want slice a_b", s, err)
	}
	if s, err := d.ByUID(1003); err != nil || s.Slice != "a_b_1003" {
		t.Errorf("uid 1003: got %+v, %v; want slice a_b_1003", s, err)
	}
}

func TestRefreshFollowsTheAccounts(t *testing.T) {
	src := &fakeSource{listed: []Account{account("alice", 1001), account("bob", 1002)}}
	d, _ := refreshed(t, src, rules(nil))
	src.listed = []Account{account("bob", 1002), account("carol", 1003)}
	if err := d.Refresh(rules(func(r *Rules) {
		r.AdminUsers = []string{"bob"}
		r.GroupOf = func(string, func([]string) (bool, error)) (string, error) { return "phd", nil }
	})); err != nil {
		t.Fatal(err)
	}
	if got := names(d.Listed()); got != "bob carol" {
		t.Errorf("listed %q", got)
	}
	if s, err := d.ByName("alice"); err == nil {
		t.Errorf("alice is still served as %+v", s)
	}
	if s, err := d.ByUID(1001); err == nil {
		t.Errorf("uid 1001 is still served as %+v", s)
	}
	want := policy.Subject{User: "bob", UID: 1002, GID: 1002, Home: "/home/bob", Group: "phd", Slice: "bob", Admin: true}
	if s, err := d.ByUID(1002); err != nil || s != want {
		t.Errorf("bob: got %+v, %v; want %+v", s, err, want)
	}
}

func TestRefreshForgetsCachedAnswers(t *testing.T) {
	src := &fakeSource{hidden: []Account{account("remote", 1500)}}
	d, _ := refreshed(t, src, rules(nil))
	if _, err := d.ByUID(1500); err != nil {
		t.Fatal(err)
	}
	if err := d.Refresh(rules(func(r *Rules) { r.Exclude = []string{"remote"} })); err != nil {
		t.Fatal(err)
	}
	if s, err := d.ByUID(1500); err == nil {
		t.Errorf("uid 1500 is still served as %+v", s)
	}
	if s, err := d.ByName("remote"); err == nil {
		t.Errorf("remote is still served as %+v", s)
	}
}

func TestRefreshErrorKeepsTheFormerState(t *testing.T) {
	src := &fakeSource{
		listed: []Account{account("alice", 1001), account("boss", 1002)},
		hidden: []Account{account("remote", 1500)}, members: map[string][]string{"adm": {"boss"}},
	}
	d, _ := refreshed(t, src, rules(nil))
	if _, err := d.ByUID(1500); err != nil {
		t.Fatal(err)
	}
	listed := d.Listed()
	src.listed = []Account{account("mallory", 1001)}
	src.err = errors.New("no LDAP server")
	for _, r := range []Rules{
		rules(func(r *Rules) { r.AdminUsers = []string{"alice"} }),
		rules(func(r *Rules) { r.Exclude = []string{"alice", "remote"} }),
	} {
		if err := d.Refresh(r); !errors.Is(err, src.err) {
			t.Fatalf("Refresh: %v, want %v", err, src.err)
		}
		if got := d.Listed(); !reflect.DeepEqual(got, listed) {
			t.Errorf("listed %+v, want %+v", got, listed)
		}
		for _, want := range []policy.Subject{
			{User: "alice", UID: 1001, GID: 1001, Home: "/home/alice", Group: "g-alice", Slice: "alice"},
			{User: "boss", UID: 1002, GID: 1002, Home: "/home/boss", Group: "g-boss", Slice: "boss", Admin: true},
			{User: "remote", UID: 1500, GID: 1500, Home: "/home/remote", Group: "g-remote", Slice: "remote"},
		} {
			if got, err := d.ByUID(want.UID); err != nil || got != want {
				t.Errorf("uid %d: got %+v, %v; want %+v", want.UID, got, err, want)
			}
		}
	}
}

// Accounts can be read while the groups that admins are in cannot.
func TestRefreshGroupErrorKeepsTheFormerState(t *testing.T) {
	src := &groupless{fakeSource: fakeSource{listed: []Account{account("alice", 1001)}}}
	d := NewDirectory(src, time.Now)
	if err := d.Refresh(rules(nil)); err != nil {
		t.Fatal(err)
	}
	src.listed = []Account{account("bob", 1002)}
	src.failure = errors.New("no LDAP server")
	if err := d.Refresh(rules(nil)); !errors.Is(err, src.failure) {
		t.Fatalf("Refresh: %v, want %v", err, src.failure)
	}
	if got := names(d.Listed()); got != "alice" {
		t.Errorf("listed %q, want alice", got)
	}
}

type groupless struct {
	fakeSource
	failure error
}

func (g *groupless) InAnyGroup(a Account, groups []string) (bool, error) {
	if g.failure != nil {
		return false, g.failure
	}
	return g.fakeSource.InAnyGroup(a, groups)
}

func TestCacheIsBounded(t *testing.T) {
	src := &fakeSource{}
	d, _ := refreshed(t, src, rules(nil))
	for uid := uint32(100000); uid < 100000+maxCached+10; uid++ {
		if _, err := d.ByUID(uid); err == nil {
			t.Fatalf("uid %d is served", uid)
		}
		if len(d.cache) > maxCached {
			t.Fatalf("%d answers are kept, more than %d", len(d.cache), maxCached)
		}
	}
}

func TestNSS(t *testing.T) {
	n := new(NSS)
	all, err := n.All()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(a Account) bool { return a.Name == "root" })
	if i < 0 {
		t.Fatalf("root is not among %q", names(all))
	}
	root := all[i]
	if root.UID != 0 || root.GID != 0 || root.Home == "" || root.Shell == "" {
		t.Errorf("root is %+v", root)
	}
	for what, ask := range map[string]func() (Account, error){
		"by uid":  func() (Account, error) { return n.ByUID(0) },
		"by name": func() (Account, error) { return n.ByName("root") },
	} {
		if got, err := ask(); err != nil || got != root {
			t.Errorf("%s: got %+v, %v; want %+v", what, got, err, root)
		}
	}
	// A second enumeration starts at the beginning again.
	if again, err := n.All(); err != nil || !reflect.DeepEqual(again, all) {
		t.Errorf("again: %q, %v; want %q", names(again), err, names(all))
	}
}

func TestNSSUnknown(t *testing.T) {
	n := new(NSS)
	if a, err := n.ByName("no-such-user-of-ds01"); !errors.Is(err, ErrUnknown) {
		t.Errorf("by name: got %+v, %v; want %v", a, err, ErrUnknown)
	}
	if a, err := n.ByUID(4294967290); !errors.Is(err, ErrUnknown) {
		t.Errorf("by uid: got %+v, %v; want %v", a, err, ErrUnknown)
	}
}

func TestNSSGroups(t *testing.T) {
	n := new(NSS)
	root, err := n.ByUID(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		groups []string
		want   bool
	}{
		{nil, false},
		{[]string{"root"}, true},
		{[]string{"no-such-group-of-ds01"}, false},
		{[]string{"no-such-group-of-ds01", "root"}, true},
		{[]string{"nogroup"}, false},
	} {
		if got, err := n.InAnyGroup(root, r.groups); err != nil || got != r.want {
			t.Errorf("root in %q: %v, %v; want %v", r.groups, got, err, r.want)
		}
	}
}

func TestNSSIsUsedByManyAtOnce(t *testing.T) {
	n := new(NSS)
	want, err := n.All()
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	const readers = 8
	for range readers {
		go func() {
			got, err := n.All()
			if err == nil && !reflect.DeepEqual(got, want) {
				err = fmt.Errorf("got %q, want %q", names(got), names(want))
			}
			errs <- err
		}()
	}
	for range readers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Users who cannot be enumerated have slices of their own too, whoever comes
// first and whoever is listed.
func TestUnlistedShareNoSlice(t *testing.T) {
	src := &fakeSource{listed: []Account{account("a-b", 1700)}, hidden: []Account{account("a_b", 1500), account("a.b", 1600)}}
	d, _ := refreshed(t, src, rules(nil))
	seen := make(map[string]uint32)
	for _, uid := range []uint32{1600, 1700, 1500} {
		s, err := d.ByUID(uid)
		if err != nil {
			t.Fatal(err)
		}
		if other, taken := seen[s.Slice]; taken {
			t.Errorf("uids %d and %d share the slice %s", uid, other, s.Slice)
		}
		seen[s.Slice] = uid
	}
}

// What is said by name about users who cannot be enumerated expires too.
func TestByNameExpires(t *testing.T) {
	src := &fakeSource{hidden: []Account{account("x", 1500)}}
	d, now := refreshed(t, src, rules(nil))
	if _, err := d.ByUID(1500); err != nil {
		t.Fatal(err)
	}
	src.hidden = nil
	now.now = now.now.Add(2 * keepFound)
	if s, err := d.ByName("x"); err == nil || s != (policy.Subject{}) {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err := d.ByUID(1500); err == nil || s != (policy.Subject{}) {
		t.Errorf("got %+v, %v", s, err)
	}
}

// Of two uids with one name the first entry of NSS is the user.
func TestOneNameIsOneUser(t *testing.T) {
	for range 20 {
		d, _ := refreshed(t, &fakeSource{listed: []Account{account("alice", 1001), account("alice", 1002)}}, rules(nil))
		if s, err := d.ByName("alice"); err != nil || s.UID != 1001 {
			t.Fatalf("got %+v, %v", s, err)
		}
	}
}

// Groups of the system are asked about when a user is judged, and not at each look-up.
func TestLimitsGroupsOfTheSystem(t *testing.T) {
	byGroups := func(r *Rules) {
		r.AdminGroups = nil
		r.GroupOf = func(user string, in func([]string) (bool, error)) (string, error) {
			if member, err := in([]string{"cs"}); member || err != nil {
				return "lab", err
			}
			return "student", nil
		}
	}
	src := &fakeSource{
		listed: []Account{account("alice", 1001), account("bob", 1002)}, hidden: []Account{account("remote", 1500)},
		members: map[string][]string{"cs": {"alice", "remote"}},
	}
	d, _ := refreshed(t, src, rules(byGroups))
	if _, err := d.ByUID(1500); err != nil {
		t.Fatal(err)
	}
	before := src.asked()
	for uid, want := range map[uint32]string{1001: "lab", 1002: "student", 1500: "lab"} {
		if s, err := d.ByUID(uid); err != nil || s.Group != want {
			t.Errorf("uid %d: %+v, %v; want the group %s", uid, s, err, want)
		}
	}
	if src.asked() != before {
		t.Errorf("%d questions for what is known", src.asked()-before)
	}
	src.members["cs"] = []string{"bob"}
	if err := d.Refresh(rules(byGroups)); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{1001: "student", 1002: "lab", 1500: "student"} {
		if s, err := d.ByUID(uid); err != nil || s.Group != want {
			t.Errorf("after a refresh, uid %d: %+v, %v; want the group %s", uid, s, err, want)
		}
	}
	// Who is named without an account, or with another's uid, is in no group.
	for _, a := range []Account{account("bob", 1002), account("bob", 64001), account("nobody", 64002)} {
		src.members["cs"] = []string{"bob", "nobody"}
		d, _ := refreshed(t, src, rules(func(r *Rules) { byGroups(r); r.Only = []Account{a} }))
		want := "student"
		if a.UID == 1002 {
			want = "lab"
		}
		if s, err := d.ByUID(a.UID); err != nil || s.Group != want {
			t.Errorf("%+v: %+v, %v; want the group %s", a, s, err, want)
		}
	}
	// What cannot be known leaves the directory as it was.
	src.err = errors.New("the directory server is down")
	r := rules(func(r *Rules) { byGroups(r); r.Only = []Account{account("bob", 1002)} })
	if err := d.Refresh(r); !errors.Is(err, src.err) {
		t.Errorf("a refresh without an answer: %v", err)
	}
	if s, err := d.ByUID(1002); err != nil || s.Group != "lab" {
		t.Errorf("after it: %+v, %v", s, err)
	}
}
