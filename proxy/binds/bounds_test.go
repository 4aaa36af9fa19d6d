package binds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBindsOfOneUserAreBounded stages as much as a user may, and one more.
func TestBindsOfOneUserAreBounded(t *testing.T) {
	dir := homes(t)
	s := stage(t, dir)
	for _, c := range []Caller{alice, bob} {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(c.UID)), nil, 0o644))
	}
	add := func(c Caller, user string) (string, error) {
		f, _, err := Open(c, filepath.Join(dir, fmt.Sprint(c.UID)), false, nil)
		must(t, err)
		defer f.Close()
		return s.Add(f, Bind{User: user, Caller: c, ReadOnly: true})
	}
	var last string
	for i := range 512 {
		at, err := add(alice, "alice")
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		last = at
	}
	mounts := func() int {
		mounted, err := mountsBelow(s.dir)
		must(t, err)
		return len(mounted)
	}
	if n := mounts(); n != 512 {
		t.Fatalf("%d are mounted", n)
	}
	if _, err := add(alice, "alice"); !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "512") {
		t.Errorf("one more: %v", err)
	}
	if n, entries := mounts(), names(t, s.dir); n != 512 || len(entries) != 512 {
		t.Errorf("what was refused left something: %d mounts, %d places", n, len(entries))
	}
	if _, err := add(bob, "bob"); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	// The bound outlives the daemon, and what goes makes room.
	again, err := OpenStage(s.dir, s.file, s.now)
	must(t, err)
	s.binds, s = make(map[string]*Bind), again
	if _, err := add(alice, "alice"); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more for the next daemon: %v", err)
	}
	must(t, s.Drop(filepath.Base(last)))
	if _, err := add(alice, "alice"); err != nil {
		t.Errorf("in the place of one that is gone: %v", err)
	}
	for _, b := range s.All() {
		must(t, s.Drop(b.Token))
	}
	if n, entries := mounts(), names(t, s.dir); n != 0 || len(entries) != 0 {
		t.Errorf("left: %d mounts, %d places", n, len(entries))
	}
}

// TestNamespacesAreBounded maps to as many container users as somebody may think of.
func TestNamespacesAreBounded(t *testing.T) {
	dir := homes(t)
	s := stage(t, dir)
	before := len(names(t, "/proc/self/fd"))
	var first string
	for i := range 2*maxNamespaces + 1 {
		at := add(t, s, alice, filepath.Join(dir, "alice"), Bind{ReadOnly: true, Map: &Map{UID: alice.UID, GID: alice.GID, ToUID: uint32(i), ToGID: uint32(i)}})
		if i == 0 {
			first = at
		} else {
			must(t, s.Drop(filepath.Base(at)))
		}
		// Each namespace is a descriptor; the runtime may have opened a few more.
		if kept, open := len(s.maps.open), len(names(t, "/proc/self/fd")); kept > 128 || open > before+128+8 {
			t.Fatalf("after %d maps %d namespaces are kept, %d descriptors open", i+1, kept, open)
		}
	}
	// A mount keeps the map whose namespace was closed.
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(first, "file"), &st))
	if st.Uid != 0 || st.Gid != 0 {
		t.Errorf("the first mount shows the file as %d:%d's", st.Uid, st.Gid)
	}
	// And what is mapped anew still is.
	at := add(t, s, alice, filepath.Join(dir, "alice"), Bind{Map: &Map{UID: alice.UID, GID: alice.GID, ToUID: 1, ToGID: 1}})
	must(t, unix.Stat(filepath.Join(at, "file"), &st))
	if st.Uid != 1 || st.Gid != 1 {
		t.Errorf("a new mount shows the file as %d:%d's", st.Uid, st.Gid)
	}
	for _, old := range s.maps.open {
		must(t, old.Close())
	}
	s.maps.open = nil
}

// names lists a directory.
func names(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	return entries
}

// TestNoSuidNoDev asks about file systems with all mixtures of the two options.
func TestNoSuidNoDev(t *testing.T) {
	dir := homes(t)
	for _, c := range []struct {
		flags uintptr
		want  bool
	}{{0, false}, {unix.MS_NOSUID, false}, {unix.MS_NODEV, false}, {unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, true}} {
		at := filepath.Join(dir, "alice")
		must(t, unix.Mount("none", at, "tmpfs", c.flags, "mode=755"))
		f, _, err := Open(alice, at, false, nil)
		if err == nil {
			var safe bool
			if safe, err = NoSuidNoDev(f); safe != c.want {
				t.Errorf("with the flags %#x: %t", c.flags, safe)
			}
			f.Close()
		}
		must(t, err, unix.Unmount(at, 0))
	}
}
