package binds

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWhatTheEngineMadeGoes has the Engine make directories in places that are not
// mounted, and containers write there: it goes, and nothing of a user's with it.
func TestWhatTheEngineMadeGoes(t *testing.T) {
	dir := homes(t)
	home := filepath.Join(dir, "alice")
	s := stage(t, dir)
	at := add(t, s, alice, home, Bind{})
	must(t, detach(at), os.MkdirAll(filepath.Join(at, "made", "deep"), 0o755), os.Symlink(home, filepath.Join(at, "link")))
	must(t, s.Drop(filepath.Base(at)))
	// A file's place became a directory.
	file := add(t, s, alice, filepath.Join(home, "file"), Bind{Map: &Map{UID: alice.UID, GID: alice.GID}})
	must(t, detach(file), os.Remove(file), os.MkdirAll(filepath.Join(file, "made"), 0o755))
	begun := filepath.Join(s.dir, "abc"+left)
	must(t, os.MkdirAll(filepath.Join(begun, "made"), 0o755))
	again, err := OpenStage(s.dir, s.file, time.Now)
	must(t, err)
	if missing, err := again.Restore(); err != nil || len(missing) > 0 {
		t.Errorf("missing: %v, %v", missing, err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "of alice" {
		t.Errorf("the file: %q, %v", text, err)
	}
	if entries := names(t, s.dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	// What is mounted twice is not emptied.
	at = add(t, s, alice, home, Bind{})
	must(t, unix.Mount(home, at, "", unix.MS_BIND, ""))
	if err := s.Drop(filepath.Base(at)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("what is mounted twice: %v", err)
	}
	must(t, s.Drop(filepath.Base(at)), s.Drop(filepath.Base(file)))
	if text, err := os.ReadFile(filepath.Join(home, "file")); err != nil || string(text) != "of alice" {
		t.Errorf("in alice's home: %q, %v", text, err)
	}
}
