package limits

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// opened makes a directory of files and opens its limits.
func opened(t *testing.T, files map[string]string) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files)
	s, err := Open(filepath.Join(dir, "resource-limits.yaml"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestTheBuiltInFileIsALimitsFile(t *testing.T) {
	s, _ := opened(t, map[string]string{"resource-limits.yaml": string(defaultFile)})
	if len(s.Notes()) != 0 {
		t.Errorf("it has keys that are not read: %v", s.Notes())
	}
	// What it shows in comments is to be read too.
	shown := bytes.ReplaceAll(defaultFile, []byte("\n#   "), []byte("\n  "))
	shown = bytes.ReplaceAll(shown, []byte("\n  student: {}"), nil)
	shown = bytes.ReplaceAll(shown, []byte("groups:"), nil)
	shown = bytes.Replace(shown, []byte("\n  student:"), []byte("\ngroups:\n  student:"), 1)
	shown = bytes.Replace(shown, []byte("\n# access_control"), []byte("\naccess_control"), 1)
	s, _ = opened(t, map[string]string{"resource-limits.yaml": string(shown)})
	l := s.Of("alice", "student")
	if users, _ := s.Admins(); len(s.Notes()) != 0 || l.Aggregate == nil || *l.Aggregate.MemoryMax != 96<<30 || len(users) != 1 {
		t.Errorf("the comments come to %+v, notes %v, admins %v", l, s.Notes(), users)
	}
}

func TestBrokenEditsKeepTheLastGoodLimits(t *testing.T) {
	const good = "groups: {phd: {members: [ann], memory: 8g}}\n"
	s, dir := opened(t, map[string]string{"resource-limits.yaml": good})
	file := filepath.Join(dir, "resource-limits.yaml")
	holds := func(what string, want int64) {
		t.Helper()
		group, err := s.GroupOf("ann", nil)
		if l := s.Of("ann", group); err != nil || l.PerContainer.Memory == nil || *l.PerContainer.Memory != want<<30 {
			t.Errorf("%s: group %q, %v, limits %+v; want %d GiB", what, group, err, l, want)
		}
	}
	holds("at first", 8)
	for _, r := range []struct {
		what   string
		damage func() error
		want   string
	}{
		{"a wrong value", func() error {
			return os.WriteFile(file, []byte("\ngroups: {phd: {members: [ann], memory: -1}}"), 0o644)
		}, file + `: line 2: groups.phd.memory: "-1" is not`},
		{"half a file", func() error { return os.WriteFile(file, []byte(good[:20]), 0o644) }, file + ": line 1: did not find"},
		{"nothing in it", func() error { return os.Truncate(file, 0) }, file + ": is empty"},
		{"too much", func() error { return os.WriteFile(file, bytes.Repeat([]byte("#"), maxFile+1), 0o644) }, file + ": has more than 1048576 bytes"},
		{"a FIFO", func() error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)) }, file + ": is not a regular file"},
		{"gone", func() error { return os.Remove(file) }, file + ": is gone"},
		{"a directory", func() error { return os.Mkdir(file, 0o700) }, file + ": is not a regular file"},
		{"a link to itself", func() error { return errors.Join(os.Remove(file), os.Symlink(file, file)) }, file + ": cannot be read: too many levels of symbolic links"},
	} {
		if err := r.damage(); err != nil {
			t.Fatal(err)
		}
		err := s.Reload()
		var problems Problems
		if !errors.As(err, &problems) || !strings.HasPrefix(err.Error(), r.want) {
			t.Errorf("%s: %v, want %s", r.what, err, r.want)
		}
		holds(r.what, 8)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"resource-limits.yaml": strings.Replace(good, "8g", "9g", 1)})
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	holds("mended", 9)
	write(t, dir, map[string]string{"user-overrides.yaml": "ann: {memory: 10g}"})
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	holds("an override appears", 10)
	write(t, dir, map[string]string{"user-overrides.yaml": "ann: {memory: 10}"})
	if err := s.Reload(); err == nil {
		t.Error("a broken override is no problem")
	}
	holds("a broken override", 10)
	if err := os.Remove(filepath.Join(dir, "user-overrides.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	holds("the override is taken away", 9)
}

func TestOpenRefusesBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	var text strings.Builder
	text.WriteString("groups:\n")
	for i := range 150 {
		fmt.Fprintf(&text, "  g%d: {memory: -1}\n", i)
	}
	write(t, dir, map[string]string{"resource-limits.yaml": text.String()})
	s, err := Open(filepath.Join(dir, "resource-limits.yaml"), zap.NewNop())
	var problems Problems
	if s != nil || !errors.As(err, &problems) || len(problems) != maxProblems+1 {
		t.Fatalf("%v, %v", s, err)
	}
	if p := problems[1]; p.Line != 3 || p.File != filepath.Join(dir, "resource-limits.yaml") {
		t.Errorf("the second is %+v", p)
	}
	if last := problems[maxProblems].Text; last != "and 50 problems more" {
		t.Errorf("the last is %q", last)
	}
}

func TestUnknownKeysAreWarnedOfOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"resource-limits.yaml": "one: 1\n"})
	core, logs := observer.New(zap.WarnLevel)
	s, err := Open(filepath.Join(dir, "resource-limits.yaml"), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one: 1\n", "# moved\none: 2\n", "one: 1\ntwo: 1\n", "{}\n", "one: 1\n"} {
		write(t, dir, map[string]string{"resource-limits.yaml": text})
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, e := range logs.All() {
		got = append(got, strings.ReplaceAll(e.Message, dir+"/", ""))
	}
	want := "resource-limits.yaml: line 1: one: is not read|resource-limits.yaml: line 2: two: is not read"
	if strings.Join(got, "|") != want {
		t.Errorf("logged %q", got)
	}
}

func TestGroupsOfTheSystemAreAskedOnlyWhereTheyDecide(t *testing.T) {
	s, _ := opened(t, map[string]string{"resource-limits.yaml": "groups: {a: {members: [ann]}, b: {system_group: [x, y]}, c: {members: [bob]}, d: {system_group: z}}"})
	broken := errors.New("the directory server is down")
	for _, r := range []struct {
		user, in, want, asked string
		err                   error
	}{
		{"ann", "x", "a", "", nil},
		{"bob", "", "c", "[x y]", nil},
		{"bob", "y", "b", "[x y]", nil},
		{"bob", "z", "c", "[x y]", nil},
		{"carl", "z", "d", "[x y][z]", nil},
		{"carl", "", "student", "[x y][z]", nil},
		{"carl", "", "", "[x y]", broken},
		{"ann", "", "a", "", broken},
	} {
		asked := ""
		got, err := s.GroupOf(r.user, func(groups []string) (bool, error) {
			asked += fmt.Sprint(groups)
			return r.in != "" && strings.Contains(asked[strings.LastIndex(asked, "["):], r.in), r.err
		})
		if got != r.want || asked != r.asked || !errors.Is(err, r.err) && r.want == "" {
			t.Errorf("%s in %q: %q, %v, asked %q", r.user, r.in, got, err, asked)
		}
	}
	if got, err := s.GroupOf("carl", nil); err != nil || got != "student" {
		t.Errorf("without groups of the system: %q, %v", got, err)
	}
}

// A group that the file no longer has must not be a way out of all limits.
func TestUnknownGroupsGetTheDefaultGroupsLimits(t *testing.T) {
	s, _ := opened(t, map[string]string{
		"resource-limits.yaml": "groups: {student: {aggregate: {tasks_max: 100}}, phd: {}}",
		"user-overrides.yaml":  "bob: {memory: 1g}",
	})
	for _, r := range []struct {
		user, group string
		aggregate   bool
	}{{"ann", "gone", true}, {"bob", "gone", true}, {"ann", "phd", false}, {"bob", "phd", false}, {"bob", "student", true}, {"bob", "phd", false}} {
		l := s.Of(r.user, r.group)
		if (l.Aggregate != nil) != r.aggregate || (l.PerContainer.Memory != nil) != (r.user == "bob") {
			t.Errorf("%s of %s: %+v", r.user, r.group, l)
		}
	}
}

func TestOfDoesNotAllocate(t *testing.T) {
	s, _ := opened(t, map[string]string{
		"resource-limits.yaml": "groups: {student: {memory: 1g, aggregate: {tasks_max: 100}}}",
		"user-overrides.yaml":  "bob: {aggregate: {gpu_limit: 1}}",
	})
	for _, user := range []string{"ann", "bob"} {
		if n := testing.AllocsPerRun(100, func() { s.Of(user, "student") }); n != 0 {
			t.Errorf("%s: %v allocations", user, n)
		}
	}
}

// While 1,000 readers read, the files change between two states and a broken one; each
// reader sees one of the two, whole.
func TestReloadAmongReaders(t *testing.T) {
	state := func(g int) map[string]string {
		return map[string]string{
			"resource-limits.yaml": fmt.Sprintf("groups: {phd: {members: [ann], memory: %dg, memory_swap: %dg, aggregate: {memory_max: %dg}}}", g, g, g),
		}
	}
	s, dir := opened(t, state(1))
	write(t, dir, map[string]string{"user-overrides.yaml": "bob: {shm_size: 1g}"})
	var readers sync.WaitGroup
	stop, wrong := make(chan struct{}), make(chan string, 1000)
	for i := range 1000 {
		user := [2]string{"ann", "bob"}[i%2]
		readers.Go(func() {
			for {
				group, err := s.GroupOf("ann", nil)
				l := s.Of(user, group)
				m, swap, all := *l.PerContainer.Memory, *l.PerContainer.MemorySwap, *l.Aggregate.MemoryMax
				if err != nil || group != "phd" || m != swap || m != all || m != 1<<30 && m != 2<<30 {
					wrong <- fmt.Sprintf("group %q, %v: %d %d %d", group, err, m, swap, all)
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	for i := range 30 {
		write(t, dir, state(1+i%2))
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
		write(t, dir, map[string]string{"resource-limits.yaml": "groups: {phd: {memory: -1}}"})
		if err := s.Reload(); err == nil {
			t.Fatal("a broken file was taken")
		}
	}
	close(stop)
	readers.Wait()
	close(wrong)
	for w := range wrong {
		t.Error(w)
	}
}
