package binds

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain holds a namespace open where newNamespace asks this very binary to.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == PauseCommand {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

var alice, bob = Caller{UID: 64001, GID: 64001}, Caller{UID: 64002, GID: 64002}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// homes makes a directory of alice's and one of bob's, with a file each, and returns
// where.
func homes(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "binds")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	for _, c := range []struct {
		name string
		c    Caller
	}{{"alice", alice}, {"bob", bob}} {
		at := filepath.Join(dir, c.name)
		must(t, os.Mkdir(at, 0o700), os.WriteFile(filepath.Join(at, "file"), []byte("of "+c.name), 0o600),
			os.Chown(at, int(c.c.UID), int(c.c.GID)), os.Chown(filepath.Join(at, "file"), int(c.c.UID), int(c.c.GID)))
	}
	return dir
}

func TestOpenAsksTheUsersRights(t *testing.T) {
	dir := homes(t)
	must(t, os.WriteFile(filepath.Join(dir, "readable"), nil, 0o644), os.Symlink(filepath.Join(dir, "bob"), filepath.Join(dir, "alice", "link")),
		os.Symlink("/proc/self/root/etc", filepath.Join(dir, "alice", "magic")))
	below := func(real string) bool { return strings.HasPrefix(real, dir+"/alice") }
	for _, c := range []struct {
		who    Caller
		path   string
		write  bool
		create func(string) bool
		want   error
	}{
		{alice, "alice", true, nil, nil}, {alice, "alice/file", true, nil, nil}, {alice, "alice/../alice", true, nil, nil},
		{alice, "bob", false, nil, unix.EACCES}, {alice, "bob/file", false, nil, unix.EACCES}, {alice, "alice/link", false, nil, unix.EACCES}, {alice, "alice/link/file", false, nil, unix.EACCES},
		{alice, "readable", false, nil, nil}, {alice, "readable", true, nil, unix.EACCES}, {alice, "alice/magic", false, nil, unix.ELOOP},
		{alice, "alice/none", false, nil, unix.ENOENT}, {alice, "alice/made/deep", true, below, nil}, {alice, "made", true, below, unix.ENOENT},
		{alice, "bob/made", true, func(string) bool { return true }, unix.EACCES}, {bob, "alice", false, nil, unix.EACCES},
		{Caller{UID: 64003, GID: 64003, Groups: []uint32{64001}}, "alice", false, nil, unix.EACCES},
	} {
		f, real, err := Open(c.who, filepath.Join(dir, c.path), c.write, c.create)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%d opens %s (write %t): %v, want %v", c.who.UID, c.path, c.write, err, c.want)
		}
		if err == nil {
			if want := filepath.Join(dir, c.path); real != want {
				t.Errorf("%s is %s", c.path, real)
			}
			f.Close()
		}
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "alice", "made", "deep"), &st))
	if st.Uid != alice.UID || st.Gid != alice.GID {
		t.Errorf("what was made is %d:%d's", st.Uid, st.Gid)
	}
	// A group that alice is in opens what it may.
	must(t, os.Chmod(filepath.Join(dir, "bob"), 0o750))
	if f, _, err := Open(Caller{UID: 64001, GID: 64001, Groups: []uint32{64002}}, filepath.Join(dir, "bob"), false, nil); err != nil {
		t.Errorf("by a group: %v", err)
	} else {
		f.Close()
	}
	// This process keeps its own rights.
	for range 20 {
		if _, err := os.ReadFile(filepath.Join(dir, "bob", "file")); err != nil {
			t.Fatal(err)
		}
	}
}

// stage returns a stage of the test's own.
func stage(t *testing.T, dir string) *Stage {
	t.Helper()
	s, err := OpenStage(filepath.Join(dir, "stage"), filepath.Join(dir, "binds.json"), time.Now)
	must(t, err)
	t.Cleanup(func() {
		for _, b := range s.All() {
			if err := s.Drop(b.Token); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func add(t *testing.T, s *Stage, c Caller, path string, b Bind) string {
	t.Helper()
	f, real, err := Open(c, path, !b.ReadOnly, nil)
	must(t, err)
	defer f.Close()
	b.Caller, b.Source, b.Real = c, path, real
	at, err := s.Add(f, b)
	must(t, err)
	return at
}

// TestStagedMountsMapOwners writes through a staged mount as the container's user and
// looks whose that is on disk.
func TestStagedMountsMapOwners(t *testing.T) {
	dir := homes(t)
	home := filepath.Join(dir, "alice")
	must(t, os.Mkdir(filepath.Join(home, "roots"), 0o700), os.WriteFile(filepath.Join(home, "roots", "secret"), nil, 0o600))
	s := stage(t, dir)
	at := add(t, s, alice, home, Bind{Map: &Map{UID: alice.UID, GID: alice.GID}})
	var st unix.Stat_t
	must(t, os.WriteFile(filepath.Join(at, "made"), []byte("x"), 0o4755), os.Chmod(filepath.Join(at, "made"), 0o4755), unix.Stat(filepath.Join(home, "made"), &st))
	if st.Uid != alice.UID || st.Gid != alice.GID {
		t.Errorf("what root made inside is %d:%d's on disk", st.Uid, st.Gid)
	}
	must(t, unix.Stat(filepath.Join(at, "file"), &st))
	if st.Uid != 0 || st.Gid != 0 {
		t.Errorf("alice's file is %d:%d's inside", st.Uid, st.Gid)
	}
	// What is another's on disk is nobody's inside, even for root; and nobody can be
	// given a file.
	if _, err := os.ReadFile(filepath.Join(at, "roots", "secret")); !errors.Is(err, unix.EACCES) {
		t.Errorf("another owner's file inside: %v", err)
	}
	if err := os.Chown(filepath.Join(at, "made"), 5, 5); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("chown to somebody else: %v", err)
	}
	if err := unix.Mknod(filepath.Join(at, "node"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err == nil {
		if _, err := os.Open(filepath.Join(at, "node")); !errors.Is(err, unix.EACCES) {
			t.Errorf("a device inside: %v", err)
		}
		must(t, os.Remove(filepath.Join(home, "node")))
	}
	var fs unix.Statfs_t
	must(t, unix.Statfs(at, &fs))
	if fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Errorf("the mount's flags are %#x", fs.Flags)
	}
	readOnly := add(t, s, alice, home, Bind{ReadOnly: true, Map: &Map{UID: alice.UID, GID: alice.GID, ToUID: 1000, ToGID: 1000}})
	if err := os.WriteFile(filepath.Join(readOnly, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write through a read-only mount: %v", err)
	}
	must(t, unix.Stat(filepath.Join(readOnly, "file"), &st))
	if st.Uid != 1000 || st.Gid != 1000 {
		t.Errorf("alice's file is %d:%d's for user 1000", st.Uid, st.Gid)
	}
	// A file of its own, and without a map.
	file := add(t, s, alice, filepath.Join(home, "file"), Bind{})
	if text, err := os.ReadFile(file); err != nil || string(text) != "of alice" {
		t.Errorf("a staged file: %q, %v", text, err)
	}
}

// TestASwappedLinkChangesNothing puts a link in the place of what was opened.
func TestASwappedLinkChangesNothing(t *testing.T) {
	dir := homes(t)
	data := filepath.Join(dir, "alice", "data")
	must(t, os.Mkdir(data, 0o755), os.Chown(data, int(alice.UID), int(alice.GID)), os.WriteFile(filepath.Join(data, "mine"), nil, 0o644))
	s := stage(t, dir)
	f, real, err := Open(alice, data, true, nil)
	must(t, err, os.Rename(data, data+"-old"), os.Symlink("/etc", data))
	at, err := s.Add(f, Bind{Caller: alice, Source: data, Real: real, Roots: []string{filepath.Join(dir, "alice")}, Map: &Map{UID: alice.UID, GID: alice.GID}})
	must(t, err, f.Close())
	if _, err := os.Stat(filepath.Join(at, "mine")); err != nil {
		t.Errorf("what is staged is not what was opened: %v", err)
	}
	must(t, s.Use("c1", "", []string{filepath.Base(at)}))
	// After a reboot it leads elsewhere: it stays away.
	must(t, detach(at))
	again, err := OpenStage(s.dir, s.file, time.Now)
	must(t, err)
	missing, err := again.Restore()
	must(t, err)
	if len(missing) != 1 || missing[0].Source != data {
		t.Errorf("missing after a reboot: %v", missing)
	}
	if err := os.WriteFile(filepath.Join(at, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("what is in its place can be written: %v", err)
	}
	if err := again.Ready(missing[0]); err == nil {
		t.Error("a container may start without it")
	}
	must(t, os.Remove(data), os.Rename(data+"-old", data))
	must(t, again.Ready(missing[0]))
	if _, err := os.Stat(filepath.Join(at, "mine")); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
	must(t, again.Release("c1"))
}

// TestBindsGoWithTheirContainers counts who uses what.
func TestBindsGoWithTheirContainers(t *testing.T) {
	dir := homes(t)
	s := stage(t, dir)
	home := filepath.Join(dir, "alice")
	one, two := add(t, s, alice, home, Bind{User: "alice"}), add(t, s, alice, home, Bind{User: "alice"})
	// Whoever says that they use somebody else's binds keeps none.
	must(t, s.Use("bobs", "bob", []string{filepath.Base(one), filepath.Base(two)}))
	must(t, s.Use("c1", "alice", []string{filepath.Base(one), filepath.Base(two)}), s.Use("c2", "alice", []string{filepath.Base(two)}))
	there := func(want ...bool) {
		t.Helper()
		for i, at := range []string{one, two} {
			mounted, err := s.Mounted(filepath.Base(at))
			if _, statErr := os.Lstat(at); err != nil || mounted != want[i] || (statErr == nil) != want[i] {
				t.Errorf("bind %d is mounted: %t (%v), there: %v", i+1, mounted, err, statErr)
			}
		}
	}
	there(true, true)
	must(t, s.Sweep(func(string) bool { return false }))
	there(true, true)
	s.now = func() time.Time { return time.Now().Add(2 * listAge) }
	must(t, s.Sweep(func(string) bool { return true }))
	there(true, true)
	must(t, s.Release("c1"))
	there(false, true)
	must(t, s.Sweep(func(id string) bool { return id != "c2" }))
	there(false, false)
	if left := s.All(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// What a daemon that ended was about to give goes when nobody claimed it for long,
	// and what nobody knows at once.
	orphan := add(t, s, alice, home, Bind{})
	stray := filepath.Join(s.dir, "stray")
	must(t, os.Mkdir(stray, 0), unix.Mount(home, stray, "", unix.MS_BIND, ""))
	again, err := OpenStage(s.dir, s.file, time.Now)
	must(t, err)
	if missing, err := again.Restore(); err != nil || len(missing) > 0 || len(again.All()) != 1 {
		t.Errorf("after a crash: %v, %v", missing, err)
	}
	again.now = func() time.Time { return time.Now().Add(2 * orphanAge) }
	must(t, again.Sweep(func(string) bool { return true }))
	for _, at := range []string{orphan, stray} {
		if _, err := os.Lstat(at); err == nil {
			t.Errorf("%s is still there", at)
		}
	}
	s.binds = map[string]*Bind{}
}
