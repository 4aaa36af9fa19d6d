package cgroupstat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/policy"
)

func n(v int64) *int64 { return &v }

// TestLimitUnified looks at what is written; a kernel's own v2 files take the place of
// these in TestSystemLimits where there is one.
func TestLimitUnified(t *testing.T) {
	files := map[string]string{"cpu.max": "", "memory.high": "", "memory.max": "", "pids.max": ""}
	for _, c := range []struct {
		name string
		a    *policy.Aggregate
		want map[string]string
	}{
		{"no aggregate", nil, map[string]string{"cpu.max": "max 100000", "memory.high": "max", "memory.max": "max", "pids.max": "max"}},
		{"no limits", &policy.Aggregate{}, map[string]string{"cpu.max": "max 100000", "memory.high": "max", "memory.max": "max", "pids.max": "max"}},
		{"all", &policy.Aggregate{CPUQuota: n(9600), MemoryMax: n(96 << 30), MemoryHigh: n(86 << 30), TasksMax: n(12288)},
			map[string]string{"cpu.max": "9600000 100000", "memory.high": "92341796864", "memory.max": "103079215104", "pids.max": "12288"}},
		{"least", &policy.Aggregate{CPUQuota: n(1), TasksMax: n(mostPIDs)}, map[string]string{"cpu.max": "1000 100000", "memory.max": "max", "pids.max": "4194304"}},
		{"more tasks than a machine has", &policy.Aggregate{TasksMax: n(mostPIDs + 1)}, map[string]string{"pids.max": "max"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := unified(t, files)
			for _, level := range levels(tree.Root) {
				put(t, level, map[string]string{"cgroup.subtree_control": "memory"})
			}
			l, err := NewLimiter(tree)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Apply(slice, c.a); err != nil {
				t.Fatal(err)
			}
			for file, want := range c.want {
				if got := text(t, filepath.Join(tree.Root, slice, file)); got != want {
					t.Errorf("%s: %q, want %q", file, got, want)
				}
			}
			for _, level := range levels(tree.Root) {
				// Of the writes, the last one stays in a plain file.
				if got := text(t, filepath.Join(level, "cgroup.subtree_control")); got != "+pids" {
					t.Errorf("%s: subtree_control %q", level, got)
				}
			}
		})
	}
}

// levels returns the directories above the slice, the root first.
func levels(root string) []string {
	parts := strings.Split(slice[1:], "/")
	out := []string{root}
	for _, p := range parts[:len(parts)-1] {
		out = append(out, filepath.Join(out[len(out)-1], p))
	}
	return out
}

func text(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestLimitErrors(t *testing.T) {
	tree := unified(t, map[string]string{"cpu.max": "", "memory.high": "", "pids.max": ""})
	for _, level := range levels(tree.Root) {
		put(t, level, map[string]string{"cgroup.subtree_control": "cpu io memory pids"})
	}
	l, err := NewLimiter(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(slice, &policy.Aggregate{CPUQuota: n(0)}); err == nil || !strings.Contains(err.Error(), "cpu quota of 0") {
		t.Errorf("a quota of nothing: %v", err)
	}
	if got := text(t, filepath.Join(tree.Root, slice, "pids.max")); got != "" {
		t.Errorf("something was written: %q", got)
	}
	err = l.Apply(slice, &policy.Aggregate{TasksMax: n(5)})
	if err == nil || !strings.Contains(err.Error(), slice+"/memory.max") {
		t.Errorf("a missing file: %v", err)
	}
	if got := text(t, filepath.Join(tree.Root, slice, "pids.max")); got != "5" {
		t.Errorf("the other limits are not set: pids.max %q", got)
	}
}

// TestLimitCountsChildren: before kernel 5.11 a v1 cgroup does not count those below it
// unless told to.
func TestLimitCountsChildren(t *testing.T) {
	for in, want := range map[string]string{"0\n": "1", "1\n": "1"} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"memory.use_hierarchy": in})
		if err := countChildren(dir); err != nil {
			t.Error(err)
		}
		if got := text(t, filepath.Join(dir, "memory.use_hierarchy")); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
	if err := countChildren(t.TempDir()); err != nil {
		t.Errorf("a kernel without the file: %v", err)
	}
}
