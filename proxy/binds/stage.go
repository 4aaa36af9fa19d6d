package binds

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"golang.org/x/sync/singleflight"

	"github.com/ds01/ds01-proxy/proxy/statefile"
)

// A Bind is one directory or file of the host that is staged for containers.
type Bind struct {
	// Token names the place below the staging directory.
	Token string `json:"token"`
	User  string `json:"user"`
	// Caller is who it was opened for.
	Caller Caller `json:"caller"`
	// Source is the path as the user gave it, Real what it was without links.
	Source string `json:"source"`
	Real   string `json:"real"`
	// Roots are the directories that Real must lie in.
	Roots    []string `json:"roots"`
	ReadOnly bool     `json:"read_only,omitempty"`
	// Socket is true of the daemon's own socket, which is another file whenever it starts.
	Socket bool `json:"socket,omitempty"`
	// Map is nil where owners are not mapped, and Unmapped true where that is since the
	// file system cannot.
	Map      *Map `json:"map,omitempty"`
	Unmapped bool `json:"unmapped,omitempty"`
	// Device and Inode say what was opened.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	// Containers are the IDs of those that use it; none while it is about to be used.
	Containers []string `json:"containers"`
	// Since is when it was staged, or last given to a container.
	Since time.Time `json:"since"`
}

// A Stage keeps staged binds: mounts below a directory that only root can enter, and
// a file that says what they are, from which they are made anew.
type Stage struct {
	dir, file string
	now       func() time.Time
	maps      namespaces

	// readying are the binds that are made ready, by token.
	readying singleflight.Group

	mu    sync.Mutex
	binds map[string]*Bind
	// opening counts the paths that are being opened again, by user.
	opening map[string]int
	// blocked are those with nothing in their place, since what they were is not there
	// any more.
	blocked map[string]bool
}

// maxPerUser is how many binds one user may have staged: each is a mount of the host.
const maxPerUser = 512

// ErrTooMany means that a user has as many binds staged as one may.
var ErrTooMany = fmt.Errorf("you have %d paths of the host bound into containers, and that is the most; remove containers that you do not need", maxPerUser)

// OpenStage returns the stage in dir, which is made if it is not there, with the
// binds that file remembers. Nothing is mounted yet; see Restore.
func OpenStage(dir, file string, now func() time.Time) (*Stage, error) {
	// The directories above may be others' way to their sockets.
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("staging directory: %w", err)
	}
	s := &Stage{dir: dir, file: file, now: now, binds: make(map[string]*Bind), blocked: make(map[string]bool), opening: make(map[string]int)}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("staged binds: %w", err)
	}
	var list []*Bind
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("staged binds %s cannot be read: %w; mend it, or move it away and make containers with binds anew", file, err)
	}
	for _, b := range list {
		s.binds[b.Token] = b
	}
	return s, nil
}

// Path is where a bind is staged.
func (s *Stage) Path(token string) string { return filepath.Join(s.dir, token) }

// Dir is the staging directory.
func (s *Stage) Dir() string { return s.dir }

// Add stages what f is a place of, and returns where. What is not given to a
// container by Use must be dropped.
func (s *Stage) Add(f *os.File, b Bind) (path string, err error) {
	b.Token, b.Since = strings.ToLower(rand.Text()), s.now().UTC()
	if b.Device, b.Inode, err = identity(f); err != nil {
		return "", err
	}
	path = s.Path(b.Token)
	s.mu.Lock()
	have := 0
	for _, other := range s.binds {
		if other.User == b.User {
			have++
		}
	}
	if have >= maxPerUser {
		s.mu.Unlock()
		return "", ErrTooMany
	}
	s.binds[b.Token] = &b
	err = s.save()
	s.mu.Unlock()
	if err == nil {
		err = s.mount(f, &b)
	}
	if err != nil {
		return "", errors.Join(err, s.Drop(b.Token))
	}
	return path, nil
}

// mount makes the place and mounts f there.
func (s *Stage) mount(f *os.File, b *Bind) error {
	st, err := known(f)
	if err != nil {
		return err
	}
	path := s.Path(b.Token)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(path, 0)
	} else {
		err = os.WriteFile(path, nil, 0)
		if errors.Is(err, unix.EISDIR) {
			// The Engine started a container before this was mounted, and made a directory.
			if err = s.takeAway(path); err == nil {
				err = os.WriteFile(path, nil, 0)
			}
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("staging place: %w", err)
	}
	if b.Map == nil {
		return attach(f, path, b.ReadOnly, nil)
	}
	return s.maps.use(*b.Map, func(ns *os.File) error { return attach(f, path, b.ReadOnly, ns) })
}

// Use says that a container of an owner's uses staged binds; others' are left out.
func (s *Stage) Use(container, owner string, tokens []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, token := range tokens {
		if b := s.binds[token]; b != nil && b.User == owner && !slices.Contains(b.Containers, container) {
			b.Containers = append(slices.Clone(b.Containers), container)
			b.Since = s.now().UTC()
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return s.save()
}

// Of returns the binds that a container uses.
func (s *Stage) Of(container string) []Bind {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Bind
	for _, b := range s.binds {
		if slices.Contains(b.Containers, container) {
			list = append(list, *b)
		}
	}
	return list
}

// All returns all binds, the oldest first.
func (s *Stage) All() []Bind {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Bind, 0, len(s.binds))
	for _, b := range s.binds {
		list = append(list, *b)
	}
	slices.SortFunc(list, func(a, b Bind) int { return a.Since.Compare(b.Since) })
	return list
}

// Release says that a container is gone: what nobody else uses goes too.
func (s *Stage) Release(container string) error {
	s.mu.Lock()
	var gone []string
	changed := false
	for token, b := range s.binds {
		if !slices.Contains(b.Containers, container) {
			continue
		}
		changed = true
		b.Containers = slices.DeleteFunc(slices.Clone(b.Containers), func(id string) bool { return id == container })
		if len(b.Containers) == 0 {
			gone = append(gone, token)
		}
	}
	var err error
	if changed {
		err = s.save()
	}
	s.mu.Unlock()
	for _, token := range gone {
		err = errors.Join(err, s.Drop(token))
	}
	return err
}

// Drop takes a bind away.
func (s *Stage) Drop(token string) error {
	if err := s.takeAway(s.Path(token)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.binds, token)
	delete(s.blocked, token)
	return s.save()
}

// left is added to the name of a place that is about to be removed with all in it.
const left = ".left"

// takeAway unmounts and removes a place.
func (s *Stage) takeAway(path string) error {
	err := detach(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		// The Engine started a container before this was mounted, which wrote to the
		// directory below. A place that has a mount cannot be renamed: nothing of a user's
		// own is removed.
		if err = os.Rename(path, path+left); err == nil {
			err = os.RemoveAll(path + left)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take a bind away: %w", err)
	}
	return nil
}

// How old a bind must be before it is taken away: of a container that is not on a
// list, which may be younger than the list; and without a container, since one may
// be about to be made.
const (
	listAge   = time.Minute
	orphanAge = 10 * time.Minute
)

// Sweep takes away what no container of those that exist uses.
func (s *Stage) Sweep(exists func(container string) bool) error {
	var err error
	for _, b := range s.All() {
		if s.now().Sub(b.Since) < listAge {
			continue
		}
		for _, id := range b.Containers {
			if !exists(id) {
				err = errors.Join(err, s.Release(id))
			}
		}
		if len(b.Containers) == 0 && s.now().Sub(b.Since) > orphanAge {
			err = errors.Join(err, s.Drop(b.Token))
		}
	}
	return err
}

// Any reports whether anything is staged.
func (s *Stage) Any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.binds) > 0
}

// Source returns what its user calls a path in the staging directory.
func (s *Stage) Source(path string) (source string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.binds[filepath.Base(path)]
	if b == nil || filepath.Dir(path) != s.dir {
		return "", false
	}
	return b.Source, true
}

// Mounted reports whether a bind is mounted.
func (s *Stage) Mounted(token string) (bool, error) {
	mounted, err := mountsBelow(s.dir)
	return mounted[s.Path(token)], err
}

// Inside reports whether a path without links is one of the roots or lies below one.
func Inside(real string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return real == root || strings.HasPrefix(real, strings.TrimSuffix(root, "/")+"/")
	})
}

// mountsBelow lists the mount points below a directory.
func mountsBelow(dir string) (map[string]bool, error) {
	// The kernel shows the path without links.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	found := make(map[string]bool)
	err := eachMount(func(fields []string) {
		if filepath.Dir(fields[4]) == dir {
			found[fields[4]] = true
		}
	})
	return found, err
}

// eachMount calls f with the fields of each line of the list of mounts, as in
// proc_pid_mountinfo(5): the ID first, the mount point fifth, its options sixth.
func eachMount(f func(fields []string)) error {
	list, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list of mounts: %w", err)
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 5 {
			f(fields)
		}
	}
	return lines.Err()
}

// save writes the file; s.mu is held.
func (s *Stage) save() error {
	list := make([]*Bind, 0, len(s.binds))
	for _, b := range s.binds {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b *Bind) int { return strings.Compare(a.Token, b.Token) })
	text, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return fmt.Errorf("staged binds: %w", err)
	}
	if err := statefile.Replace(s.file, append(text, '\n')); err != nil {
		return fmt.Errorf("staged binds: %w", err)
	}
	return nil
}
