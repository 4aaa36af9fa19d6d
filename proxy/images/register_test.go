package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func open(t *testing.T, path string, c *clock) *Register {
	t.Helper()
	r, err := Open(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRegisterIsKept reads what another register wrote.
func TestRegisterIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.json")
	c := &clock{time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}
	r := open(t, path, c)
	must(t, r.Wrote("alice", false, []string{"a:1", "a:2"}))
	must(t, r.Wrote("bob", true, []string{"b:1"}))
	must(t, r.Built("alice", "sha256:1"))
	must(t, r.Built("bob", "sha256:1"))
	must(t, r.Forget([]string{"a:2", "never:1"}))
	for what, r := range map[string]*Register{"the same": r, "after a restart": open(t, path, c)} {
		if w, known := r.Writer("a:1"); !known || w != (Writer{"alice", false, c.t}) {
			t.Errorf("%s: a:1 is %v", what, w)
		}
		if w, known := r.Writer("b:1"); !known || !w.Pulled || w.User != "bob" {
			t.Errorf("%s: b:1 is %v", what, w)
		}
		if w, known := r.Writer("a:2"); known {
			t.Errorf("%s: a:2 is %v", what, w)
		}
		if got := r.Builders("sha256:1"); !slices.Equal(got, []string{"alice", "bob"}) {
			t.Errorf("%s: the image is %v's", what, got)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if rest, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*")); err != nil || len(rest) > 0 {
		t.Errorf("left beside it: %v, %v", rest, err)
	}
}

// TestRegisterKeepsWhatMayComeToBe forgets what is gone for long, and not what
// somebody is about to write.
func TestRegisterKeepsWhatMayComeToBe(t *testing.T) {
	c := &clock{time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}
	r := open(t, filepath.Join(t.TempDir(), "images.json"), c)
	must(t, r.Wrote("alice", false, []string{"there:1", "gone:1", "busy:1"}))
	must(t, r.Built("alice", "sha256:gone"))
	end := begin(t, r, "alice", []string{"busy:1"})
	exists := func(name string) bool { return name == "there:1" }
	known := func() (names []string) {
		for _, name := range []string{"there:1", "gone:1", "busy:1"} {
			if _, ok := r.Writer(name); ok {
				names = append(names, name)
			}
		}
		return names
	}
	must(t, r.Keep(exists))
	if got := known(); len(got) != 3 {
		t.Errorf("at once only %v is known", got)
	}
	if got := r.Builders("sha256:gone"); got != nil {
		t.Errorf("an image that is gone is %v's", got)
	}
	c.t = c.t.Add(grace + time.Second)
	must(t, r.Keep(exists))
	if got := known(); !slices.Equal(got, []string{"there:1", "busy:1"}) {
		t.Errorf("later %v is known", got)
	}
	end()
	must(t, r.Keep(exists))
	if got := known(); !slices.Equal(got, []string{"there:1"}) {
		t.Errorf("in the end %v is known", got)
	}
}

// begin reserves names and wants to get them.
func begin(t *testing.T, r *Register, user string, own []string, shared ...string) (end func()) {
	t.Helper()
	end, err := r.Begin(user, own, shared)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// TestBegin reserves names for one user, or for several who share them.
func TestBegin(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "images.json"), &clock{time.Now()})
	held := func(user, by string, own []string, shared ...string) {
		t.Helper()
		var e *HeldError
		if _, err := r.Begin(user, own, shared); !errors.As(err, &e) || e.User != by {
			t.Errorf("%s, %v and %v: %v, want held by %s", user, own, shared, err, by)
		}
	}
	end1 := begin(t, r, "alice", []string{"a:1", "a:2"})
	end2 := begin(t, r, "alice", []string{"a:2", "a:3"}, "shared")
	held("bob", "alice", []string{"b:1", "a:3"})
	held("bob", "alice", []string{"shared"})
	held("bob", "alice", nil, "a:1")
	begin(t, r, "bob", nil, "shared")()
	begin(t, r, "carol", []string{"b:1"})()
	end1()
	held("bob", "alice", []string{"a:2"})
	end2()
	begin(t, r, "bob", []string{"a:1", "a:2", "a:3", "shared", "shared"})()
	begin(t, r, "bob", []string{"shared"}, "shared")()
	if len(r.busy) > 0 || len(r.held) > 0 {
		t.Errorf("still reserved: %v, %v", r.busy, r.held)
	}
	var many []string
	for i := range maxHeld {
		many = append(many, fmt.Sprint("m:", i))
	}
	end := begin(t, r, "alice", many)
	var e *HeldError
	if _, err := r.Begin("alice", []string{"one:more"}, nil); err == nil || errors.As(err, &e) {
		t.Errorf("one more than %d: %v", maxHeld, err)
	}
	begin(t, r, "bob", []string{"one:more"})()
	end()
	begin(t, r, "alice", []string{"one:more"})()
}

// TestOpenRefusesWhatItCannotRead wants an error that says what to do, and the
// file as it was.
func TestOpenRefusesWhatItCannotRead(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"tags":[]}`, "null"} {
		path := filepath.Join(t.TempDir(), "images.json")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, err := Open(path, time.Now); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%q: %v", text, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%q became %q, %v", text, now, err)
		}
	}
	path := filepath.Join(t.TempDir(), "images.json")
	must(t, os.WriteFile(path, []byte(`{"version":1}`), 0o600))
	must(t, open(t, path, &clock{time.Now()}).Wrote("alice", false, []string{"a:1"}))
}

// TestManyWriters writes from many sides at once: the file has everything in the end.
func TestManyWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.json")
	c := &clock{time.Now()}
	r := open(t, path, c)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			tag := fmt.Sprintf("t:%d", i)
			if err := r.Wrote("alice", false, []string{tag}); err != nil {
				t.Error(err)
			}
			// Whoever has been told so finds it in the file.
			if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), `"`+tag+`"`) {
				t.Errorf("%s is not in the file: %v", tag, err)
			}
		}()
	}
	wg.Wait()
	if got := len(open(t, path, c).state.Tags); got != 32 {
		t.Errorf("the file has %d tags", got)
	}
}
