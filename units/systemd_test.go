package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/ds01/ds01-proxy/policy"
)

// fake is a systemd that records what it is told. It has units that are loaded.
type fake struct {
	calls  []string
	loaded map[string]bool
	set    map[string]map[string]any
	// fail are errors of the coming calls, nil for those that work.
	fail   []error
	dials  int
	closed int
}

func (f *fake) Close() error { f.closed++; return nil }

func (f *fake) call(what string) error {
	f.calls = append(f.calls, what)
	if len(f.fail) == 0 {
		return nil
	}
	err := f.fail[0]
	f.fail = f.fail[1:]
	return err
}

func (f *fake) Reload(context.Context) error { return f.call("reload") }

func (f *fake) Start(_ context.Context, unit string, properties []systemd.Property) error {
	what := "start "
	if properties != nil {
		what = "transient "
	}
	if err := f.call(what + unit); err != nil {
		return err
	}
	if properties != nil {
		if f.loaded[unit] {
			return *dbus.NewError(unitExists, []any{unit + " was already loaded"})
		}
		f.keep(unit, properties)
	}
	f.loaded[unit] = true
	return nil
}

func (f *fake) Set(_ context.Context, unit string, properties []systemd.Property) error {
	if err := f.call("set " + unit); err != nil {
		return err
	}
	f.keep(unit, properties)
	return nil
}

func (f *fake) keep(unit string, properties []systemd.Property) {
	if f.set[unit] == nil {
		f.set[unit] = map[string]any{}
	}
	for _, p := range properties {
		f.set[unit][p.Name] = p.Value.Value()
	}
}

func fakeSystemd(dir string) (*Systemd, *fake) {
	f := &fake{loaded: map[string]bool{}, set: map[string]map[string]any{}}
	return &Systemd{Dir: dir, Dial: func(context.Context) (Bus, error) { f.dials++; return f, nil }}, f
}

func (f *fake) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(f.calls, want) {
		t.Errorf("systemd was told %q, want %q", f.calls, want)
	}
	f.calls = nil
}

const (
	group = "ds01-student.slice"
	alice = "ds01-student-alice.slice"
	bob   = "ds01-student-bob.slice"
)

func TestTransient(t *testing.T) {
	s, f := fakeSystemd("")
	if err := s.Ensure(t.Context(), "student", "alice", all); err != nil {
		t.Fatal(err)
	}
	f.expect(t, "transient ds01.slice", "transient "+group, "transient "+alice)
	for name, want := range map[string]any{
		"CPUQuotaPerSecUSec": uint64(96_000_000), "MemoryMax": uint64(96 << 30), "MemoryHigh": uint64(86 << 30), "TasksMax": uint64(12288),
		"CPUAccounting": true, "MemoryAccounting": true, "TasksAccounting": true, "IOAccounting": true,
	} {
		if got := f.set[alice][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if _, limited := f.set[group]["MemoryMax"]; limited || f.set[group]["MemoryAccounting"] != true {
		t.Errorf("the group's properties: %v", f.set[group])
	}

	// A changed limit reaches a live slice, and so does none.
	if err := s.Ensure(t.Context(), "student", "alice", &policy.Aggregate{CPUQuota: n(1)}); err != nil {
		t.Fatal(err)
	}
	f.expect(t, "transient ds01.slice", "start ds01.slice", "set ds01.slice", "transient "+group, "start "+group, "set "+group,
		"transient "+alice, "start "+alice, "set "+alice)
	if got := f.set[alice]; got["CPUQuotaPerSecUSec"] != uint64(10_000) || got["MemoryMax"] != uint64(math.MaxUint64) || got["TasksMax"] != uint64(math.MaxUint64) {
		t.Errorf("the user's properties: %v", got)
	}
	if f.dials != 1 {
		t.Errorf("dialled %d times", f.dials)
	}
}

func TestByFile(t *testing.T) {
	dir := t.TempDir()
	s, f := fakeSystemd(dir)
	started := []string{"start ds01.slice", "set ds01.slice", "start " + group, "set " + group, "start " + alice, "set " + alice}
	if err := s.Ensure(t.Context(), "student", "alice", all); err != nil {
		t.Fatal(err)
	}
	f.expect(t, append([]string{"reload"}, started...)...)
	files, err := Render("student", "alice", all)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if got, err := os.ReadFile(filepath.Join(dir, file.Path)); err != nil || string(got) != file.Text {
			t.Errorf("%s: %q, %v", file.Path, got, err)
		}
	}

	if err := s.Ensure(t.Context(), "student", "alice", all); err != nil {
		t.Fatal(err)
	}
	f.expect(t, started...)

	// Many users, one reload, and what they share once.
	err = s.EnsureAll(t.Context(), []Wanted{{"student", "alice", nil}, {"student", "bad/name", nil}, {"student", "bob", nil}})
	if err == nil || !strings.Contains(err.Error(), `"bad/name"`) {
		t.Errorf("a name that is none: %v", err)
	}
	f.expect(t, append(append([]string{"reload"}, started...), "start "+bob, "set "+bob)...)
	if f.set[alice]["MemoryMax"] != uint64(math.MaxUint64) {
		t.Errorf("the user's properties: %v", f.set[alice])
	}
}

// TestReloadIsOwed: what systemd was not told of, it is told of next time.
func TestReloadIsOwed(t *testing.T) {
	s, f := fakeSystemd(t.TempDir())
	f.fail = []error{*dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{"no"})}
	if err := s.Ensure(t.Context(), "student", "alice", all); err == nil || !strings.Contains(err.Error(), "reload systemd: no") {
		t.Errorf("refused: %v", err)
	}
	f.expect(t, "reload")
	if err := s.Ensure(t.Context(), "student", "alice", all); err != nil || f.calls[0] != "reload" {
		t.Errorf("%q, %v", f.calls, err)
	}
}

func TestLostConnections(t *testing.T) {
	no := *dbus.NewError("org.freedesktop.systemd1.Masked", []any{"it is masked"})
	lost := fmt.Errorf("read: %w", io.ErrUnexpectedEOF)
	for _, c := range []struct {
		name          string
		fail          []error
		err           string
		dials, closed int
	}{
		{"none", nil, "", 1, 0},
		{"refused", []error{no}, "ds01.slice: start: it is masked", 1, 0},
		{"lost once", []error{lost}, "", 2, 1},
		{"lost while it sets", []error{nil, nil, nil, nil, nil, nil, nil, nil, lost}, "", 2, 1},
		{"lost again", []error{lost, lost}, "unexpected EOF", 2, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, f := fakeSystemd("")
			if err := s.Ensure(t.Context(), "student", "alice", all); err != nil {
				t.Fatal(err)
			}
			f.fail = c.fail
			err := s.Ensure(t.Context(), "student", "alice", nil)
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
			if f.dials != c.dials || f.closed != c.closed {
				t.Errorf("%d dials, %d closed", f.dials, f.closed)
			}
			if c.err == "" && f.set[alice]["MemoryMax"] != uint64(math.MaxUint64) {
				t.Errorf("the limit was not set: %v", f.set[alice])
			}
		})
	}
}

func TestNoSystemd(t *testing.T) {
	s, f := fakeSystemd("")
	s.Dial = func(context.Context) (Bus, error) { return nil, os.ErrNotExist }
	if err := s.Ensure(t.Context(), "student", "alice", nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "connect to systemd") {
		t.Error(err)
	}
	f.expect(t)

	// A call that is given up keeps no connection that may be half read.
	s, f = fakeSystemd("")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.fail = []error{context.Canceled}
	if err := s.Ensure(ctx, "student", "alice", nil); !errors.Is(err, context.Canceled) || f.closed != 1 || f.dials != 1 {
		t.Errorf("%v; %d dials, %d closed", err, f.dials, f.closed)
	}
}
