package cgroupstat

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const slice = "/ds01.slice/ds01-student.slice/ds01-student-alice.slice"

// put writes files below a directory; a name that ends in a slash is a directory.
func put(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(root, name)
		dir := filepath.Dir(file)
		if strings.HasSuffix(name, "/") {
			dir = file
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == file {
			continue
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// unified returns a tree that looks like v2, with the files of one slice.
func unified(t testing.TB, files map[string]string) Tree {
	root := t.TempDir()
	put(t, root, map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n"})
	put(t, filepath.Join(root, slice), files)
	return Tree{Root: root, Unified: true}
}

func reader(t testing.TB, tree Tree) *Reader {
	t.Helper()
	r, err := NewReader(tree)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReadUnified(t *testing.T) {
	whole := map[string]string{"memory.current": "3000\n", "pids.current": "7\n", "memory.stat": "anon 5\nfile 9\nworkingset_inactive_file 4\ninactive_file 1000\nactive_file 6\n"}
	with := func(name, text string) map[string]string {
		out := map[string]string{}
		for k, v := range whole {
			out[k] = v
		}
		out[name] = text
		if text == "" {
			delete(out, name)
		}
		return out
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  Usage
		errs  []string
	}{
		{name: "whole", files: whole, want: Usage{Memory: 3000, Cache: 1000, PIDs: 7, Exists: true}},
		{name: "absent", files: nil},
		{name: "nothing in it", files: map[string]string{"cgroup.procs": ""}, errs: []string{"memory.current", "cgroup.subtree_control"}},
		{name: "no memory", files: with("memory.current", ""), errs: []string{slice + "/memory.current", "MemoryAccounting="}},
		{name: "no pids", files: with("pids.current", ""), errs: []string{slice + "/pids.current", "TasksAccounting="}},
		{name: "no stat", files: with("memory.stat", ""), errs: []string{slice + "/memory.stat"}},
		{name: "no such line", files: with("memory.stat", "total_inactive_file 1\n"), errs: []string{"memory.stat has no inactive_file"}},
		{name: "empty", files: with("memory.current", "\n"), errs: []string{"memory.current", "not a number"}},
		{name: "garbage", files: with("pids.current", "seven"), errs: []string{"pids.current", `"seven"`}},
		{name: "negative", files: with("memory.current", "-1"), errs: []string{"memory.current", `"-1"`}},
		{name: "too large", files: with("memory.current", "9223372036854775808"), errs: []string{"memory.current"}},
		{name: "largest", files: with("memory.current", "9223372036854775807"), want: Usage{Memory: 1<<63 - 1, Cache: 1000, PIDs: 7, Exists: true}},
		{name: "garbage in stat", files: with("memory.stat", "inactive_file x\n"), errs: []string{"memory.stat"}},
		{name: "endless", files: with("memory.stat", strings.Repeat("x 1\n", 10_000)), errs: []string{"memory.stat has 16384 bytes or more"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := reader(t, unified(t, c.files)).Read(slice)
			check(t, got, err, c.want, c.errs)
		})
	}
}

func check(t *testing.T, got Usage, err error, want Usage, errs []string) {
	t.Helper()
	if (err != nil) != (errs != nil) || got != want {
		t.Fatalf("%+v, %v; want %+v, %q", got, err, want, errs)
	}
	for _, e := range errs {
		if !strings.Contains(err.Error(), e) {
			t.Errorf("error %q does not say %q", err, e)
		}
	}
}

func TestReadLegacy(t *testing.T) {
	mem := map[string]string{"memory.usage_in_bytes": "3000\n", "memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n"}
	num := map[string]string{"pids.current": "7\n"}
	for _, c := range []struct {
		name      string
		mem, pids map[string]string
		want      Usage
		errs      []string
	}{
		{name: "whole", mem: mem, pids: num, want: Usage{Memory: 3000, Cache: 1000, PIDs: 7, Exists: true}},
		{name: "absent"},
		{name: "memory only", mem: mem, errs: []string{"pids.current", "the memory and the pids hierarchy"}},
		{name: "pids only", pids: num, errs: []string{"memory.usage_in_bytes", "the memory and the pids hierarchy"}},
		{name: "v2's key", mem: map[string]string{"memory.usage_in_bytes": "1", "memory.stat": "inactive_file 1\n"}, pids: num, errs: []string{"no total_inactive_file"}},
	} {
		for _, dirs := range [][2]string{{"memory", "pids"}, {"memory,blkio", "cpuset,pids"}} {
			t.Run(c.name+" in "+dirs[0], func(t *testing.T) {
				root := t.TempDir()
				put(t, root, map[string]string{dirs[0] + "/": "", dirs[1] + "/": ""})
				put(t, filepath.Join(root, dirs[0], slice), c.mem)
				put(t, filepath.Join(root, dirs[1], slice), c.pids)
				got, err := reader(t, Tree{Root: root}).Read(slice)
				check(t, got, err, c.want, c.errs)
			})
		}
	}
}

func TestTreesWithoutControllers(t *testing.T) {
	legacy := t.TempDir()
	put(t, legacy, map[string]string{"memory/": "", "unified/cgroup.controllers": "pids\n"})
	partial := t.TempDir()
	put(t, partial, map[string]string{"cgroup.controllers": "hugetlb memory2 pids\n"})
	for _, c := range []struct {
		tree Tree
		want string
	}{
		{Tree{Root: legacy}, "find the pids controller: nothing is mounted at " + legacy + "/pids"},
		{Tree{Root: legacy, Unified: true}, "find the memory controller: open " + legacy + "/cgroup.controllers"},
		{Tree{Root: partial, Unified: true}, partial + "/cgroup.controllers does not list it"},
		{Tree{Root: filepath.Join(partial, "gone")}, "find the memory controller"},
	} {
		if _, err := NewReader(c.tree); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("reader of %+v: %v, want %q", c.tree, err, c.want)
		}
		if _, err := NewLimiter(c.tree); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("limiter of %+v: %v, want %q", c.tree, err, c.want)
		}
	}
}

// TestUnmounted: a slice of a tree that is gone is not one that does not exist.
func TestUnmounted(t *testing.T) {
	tree := unified(t, nil)
	r := reader(t, tree)
	if err := os.RemoveAll(tree.Root); err != nil {
		t.Fatal(err)
	}
	if u, err := r.Read(slice); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("%+v, %v", u, err)
	}
}

var badPaths = []string{"", "/", ".", "..", "ds01.slice", "/..", "/ds01.slice/..", "/ds01.slice/../../etc", "//ds01.slice", "/ds01.slice/", "/./x", "/a\x00b", "/a\nb"}

func TestPathsAreRefused(t *testing.T) {
	tree := unified(t, nil)
	l, err := NewLimiter(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range badPaths {
		if u, err := reader(t, tree).Read(p); err == nil || !strings.Contains(err.Error(), "shortest form") {
			t.Errorf("read %q: %+v, %v", p, u, err)
		}
		if err := l.Apply(p, nil); err == nil || !strings.Contains(err.Error(), "shortest form") {
			t.Errorf("limit %q: %v", p, err)
		}
	}
}

func TestPermission(t *testing.T) {
	err := pathError("open", "/x/memory.current", fs.ErrPermission)
	if !strings.Contains(err.Error(), "/x/memory.current") || !strings.Contains(err.Error(), "root") {
		t.Error(err)
	}
}

func TestUsed(t *testing.T) {
	for _, c := range []struct{ memory, cache, want int64 }{{0, 0, 0}, {3, 1, 2}, {1, 1, 0}, {1, 3, 0}} {
		if got := (Usage{Memory: c.memory, Cache: c.cache}).Used(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
