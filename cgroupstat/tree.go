// Package cgroupstat reads what a user's slice uses and, where no systemd does it,
// sets what the slice may use.
//
// Slices are named by their path below a hierarchy's root, such as
// /ds01.slice/ds01-student.slice/ds01-student-alice.slice.
package cgroupstat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
)

// The controllers in use; v1 and v2 name them alike.
const (
	cpu    = "cpu"
	memory = "memory"
	pids   = "pids"
)

// A Tree says where cgroups are mounted and how.
type Tree struct {
	// Root is the directory of the one hierarchy of v2, or of all of v1's, each in a
	// directory named after its controllers.
	Root string
	// Unified is v2. A hybrid tree is v1: container runtimes use its v1 controllers.
	Unified bool
}

// System returns the tree of the machine, below /sys/fs/cgroup. It is looked at once
// in a process's life. The error says that nothing is mounted there.
func System() (Tree, error) {
	t := Tree{Root: "/sys/fs/cgroup"}
	switch cgroups.Mode() {
	case cgroups.Unified:
		t.Unified = true
	case cgroups.Legacy, cgroups.Hybrid:
	default:
		return Tree{}, fmt.Errorf("no cgroups below %s: mount cgroup2 there", t.Root)
	}
	return t, nil
}

// controllers returns the directory of each named controller's hierarchy.
func (t Tree) controllers(names ...string) (map[string]string, error) {
	dirs := make(map[string]string, len(names))
	var errs []error
	for _, name := range names {
		dir, err := t.controller(name)
		if err != nil {
			errs = append(errs, err)
		}
		dirs[name] = dir
	}
	return dirs, errors.Join(errs...)
}

func (t Tree) controller(name string) (string, error) {
	if t.Unified {
		file := filepath.Join(t.Root, "cgroup.controllers")
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("find the %s controller: %w", name, err)
		}
		if !slices.Contains(strings.Fields(string(text)), name) {
			return "", fmt.Errorf("find the %s controller: %s does not list it: the kernel must have it, enabled and not bound to a v1 hierarchy", name, file)
		}
		return t.Root, nil
	}
	dir := filepath.Join(t.Root, name)
	if isDir(dir) {
		return dir, nil
	}
	// Controllers mounted together, without the customary symbolic links.
	entries, err := os.ReadDir(t.Root)
	if err != nil {
		return "", fmt.Errorf("find the %s controller: %w", name, err)
	}
	for _, e := range entries {
		if slices.Contains(strings.Split(e.Name(), ","), name) {
			return filepath.Join(t.Root, e.Name()), nil
		}
	}
	return "", fmt.Errorf("find the %s controller: nothing is mounted at %s: mount it, or boot with cgroup_enable=%s", name, dir, name)
}

// checkPath returns an error unless p is an absolute path in its shortest form, other
// than the root, so that it names one cgroup below a hierarchy's root.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsAny(p, "\x00\n") {
		return fmt.Errorf("cgroup path %q is not an absolute path in its shortest form below the root", p)
	}
	return nil
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// isMissing reports whether err says that a file does not exist.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
