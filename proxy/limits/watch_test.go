package limits

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
)

// watched starts to watch the limits below dir; the function waits for a change, or, with
// false, for none.
func watched(t *testing.T, path string) (s *Store, changes func(what string, want bool)) {
	t.Helper()
	s, err := Open(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	changed, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- s.Watch(ctx, func() { changed <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	changes = func(what string, want bool) {
		t.Helper()
		wait := 10 * time.Second
		if !want {
			wait = 3 * settleTime
		}
		select {
		case <-changed:
			if !want {
				t.Errorf("%s: called a change", what)
			}
		case <-time.After(wait):
			if want {
				t.Errorf("%s: no change was seen", what)
			}
		}
	}
	changes("at first", true)
	return s, changes
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchSeesEdits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "resource-limits.yaml")
	write(t, dir, map[string]string{"resource-limits.yaml": "defaults: {memory: 1g}"})
	s, changes := watched(t, file)

	write(t, dir, map[string]string{"resource-limits.yaml": "defaults: {memory: 2g}"})
	changes("written in place", true)
	for _, size := range []string{"3g", "4g"} {
		// As editors do: a file beside it takes its place.
		write(t, dir, map[string]string{".resource-limits.yaml.swp": "defaults: {memory: " + size + "}"})
		changes("a swap file", false)
		do(t, os.Rename(file, file+"~"), os.Rename(filepath.Join(dir, ".resource-limits.yaml.swp"), file))
		changes("renamed over it", true)
		changes("the same again", false)
		do(t, s.Reload())
		if got := showSize(*s.Of("ann", "").PerContainer.Memory); got != size {
			t.Errorf("memory is %s, want %s", got, size)
		}
	}
	write(t, dir, map[string]string{"user-overrides.yaml": "ann: {}"})
	changes("overrides appear", true)
	write(t, dir, map[string]string{"groups/phd.members": "ann\n"})
	changes("groups appear", true)
	write(t, dir, map[string]string{"groups/phd.members": "bob\n"})
	changes("members are written", true)
	write(t, dir, map[string]string{"groups/README": "x", "other.yaml": "x"})
	changes("other files", false)
	do(t, os.Rename(filepath.Join(dir, "groups"), filepath.Join(dir, "groups.old")))
	changes("groups are moved away", true)
	write(t, dir, map[string]string{"groups.old/phd.members": "carl\n"})
	changes("what was moved away", false)
	write(t, dir, map[string]string{"groups/phd.members": "carl\n"})
	changes("groups appear again", true)
	write(t, dir, map[string]string{"groups/lab.members": "carl\n"})
	changes("members appear", true)
	do(t, os.RemoveAll(filepath.Join(dir, "groups")))
	changes("groups are removed", true)
}

func TestWatchAwaitsDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, changes := watched(t, filepath.Join(dir, "a", "b", "resource-limits.yaml"))
	write(t, dir, map[string]string{"other/b/resource-limits.yaml": "{}"})
	changes("another directory", false)
	write(t, dir, map[string]string{"a/b/resource-limits.yaml": "defaults: {memory: 2g}", "a/b/groups/x.members": ""})
	changes("all at once", true)
	do(t, s.Reload())
	if l := s.Of("ann", ""); l.PerContainer.Memory == nil {
		t.Errorf("limits are %+v", l)
	}
	write(t, dir, map[string]string{"a/b/groups/x.members": "ann"})
	changes("members", true)
}

func TestWatchFollowsLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"repo/limits-1.yaml": "{}", "repo/limits-2.yaml": "{}", "etc/x": ""})
	link := filepath.Join(dir, "etc", "resource-limits.yaml")
	do(t, os.Symlink(filepath.Join(dir, "repo", "limits-1.yaml"), link))
	_, changes := watched(t, link)
	write(t, dir, map[string]string{"repo/limits-1.yaml": "defaults: {}"})
	changes("what the link leads to", true)
	write(t, dir, map[string]string{"repo/limits-2.yaml": "defaults: {}"})
	changes("what it does not lead to", false)
	do(t, os.Symlink(filepath.Join(dir, "repo", "limits-2.yaml"), link+".new"), os.Rename(link+".new", link))
	changes("another link", true)
	write(t, dir, map[string]string{"repo/limits-2.yaml": "{}"})
	changes("what it leads to now", true)
}
