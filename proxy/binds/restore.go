package binds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Restore mounts what is not mounted, as after a reboot, and takes away what nobody
// remembers. What is not what it was stays away, and is returned: an empty place is
// there in its stead. Binds without a container are of a daemon that ended in between;
// they stay until Sweep, since the Engine may have made the container.
func (s *Stage) Restore() (missing []Bind, err error) {
	mounted, err := mountsBelow(s.dir)
	if err != nil {
		return nil, err
	}
	absent := make(map[string][]Bind)
	for _, b := range s.All() {
		if !mounted[s.Path(b.Token)] {
			absent[b.User] = append(absent[b.User], b)
		}
	}
	missing = s.againAll(absent)
	for _, b := range missing {
		err = errors.Join(err, s.block(b.Token))
	}
	for path := range mounted {
		s.mu.Lock()
		known := s.binds[filepath.Base(path)] != nil
		s.mu.Unlock()
		if !known {
			err = errors.Join(err, s.takeAway(path))
		}
	}
	begun, _ := filepath.Glob(filepath.Join(s.dir, "*"+left))
	for _, path := range begun {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return missing, err
}

// maxOpening is how many of a user's paths may be opened again at the same time.
const maxOpening = 8

// againAll mounts users' binds, and returns those that cannot be. A path that does not
// answer holds up nobody else's, and costs its user one of those that are opened at
// the same time: with all of them gone the user's others are not tried.
func (s *Stage) againAll(absent map[string][]Bind) (missing []Bind) {
	var (
		mu     sync.Mutex
		all    sync.WaitGroup
		queues []chan Bind
	)
	for _, list := range absent {
		queue := make(chan Bind, len(list))
		for _, b := range list {
			queue <- b
		}
		close(queue)
		queues = append(queues, queue)
		for range min(maxOpening, len(list)) {
			all.Go(func() {
				for b := range queue {
					err := s.Again(b)
					if err == nil {
						continue
					}
					mu.Lock()
					missing = append(missing, b)
					mu.Unlock()
					if errors.Is(err, errSilent) {
						return
					}
				}
			})
		}
	}
	all.Wait()
	for _, queue := range queues {
		for b := range queue {
			missing = append(missing, b)
		}
	}
	return missing
}

// Again opens a bind as its user and mounts it, where it is not mounted. It must be
// what it was, at the place where it was.
func (s *Stage) Again(b Bind) error {
	if !s.mayOpen(b.User) {
		return &OpenError{Path: b.Source, Err: errors.New("too many paths of yours are being opened, or do not answer; wait until they do")}
	}
	f, real, err := OpenSoon(b.Caller, b.Source, !b.ReadOnly, nil, func() { s.opened(b.User) })
	if err != nil {
		return err
	}
	defer f.Close()
	_, inode, err := identity(f)
	if err != nil {
		return err
	}
	if real != b.Real || inode != b.Inode && !b.Socket {
		return &OpenError{Path: b.Source, Real: real, Err: fmt.Errorf("it is not what it was when the container was made")}
	}
	if b.Map == nil && !b.Unmapped {
		if safe, err := NoSuidNoDev(f); err != nil || !safe {
			return errors.Join(err, &OpenError{Path: b.Source, Real: real, Err: errors.New("its file system honours set-user-id programs or devices now")})
		}
	}
	return s.mount(f, &b)
}

// mayOpen takes one of the paths that a user may have being opened again, and opened
// gives it back.
func (s *Stage) mayOpen(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opening[user] >= maxOpening {
		return false
	}
	s.opening[user]++
	return true
}

func (s *Stage) opened(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opening[user]--; s.opening[user] == 0 {
		delete(s.opening, user)
	}
}

// block puts an empty directory that nobody can write in the place of a bind: the
// Engine would make one, as root, and bind that.
func (s *Stage) block(token string) error {
	path := s.Path(token)
	if err := os.Mkdir(path, 0); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("staging place: %w", err)
	}
	if err := unix.Mount("none", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=0"); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("block a bind: %w", err)
	}
	s.mu.Lock()
	s.blocked[token] = true
	s.mu.Unlock()
	return nil
}

// Ready makes sure that a bind is mounted: a container that is about to start must not
// get the empty place.
func (s *Stage) Ready(b Bind) error {
	// Starts that need one bind at a time make it ready together.
	_, err, _ := s.readying.Do(b.Token, func() (any, error) { return nil, s.ready(b) })
	return err
}

func (s *Stage) ready(b Bind) error {
	s.mu.Lock()
	blocked := s.blocked[b.Token]
	s.mu.Unlock()
	if blocked {
		if err := s.takeAway(s.Path(b.Token)); err != nil {
			return err
		}
		if err := s.Again(b); err != nil {
			return errors.Join(err, s.block(b.Token))
		}
		s.mu.Lock()
		delete(s.blocked, b.Token)
		s.mu.Unlock()
		return nil
	}
	mounted, err := s.Mounted(b.Token)
	if err == nil && mounted && b.Socket && s.stale(b) {
		mounted, err = false, s.takeAway(s.Path(b.Token))
	}
	if err != nil || mounted {
		return err
	}
	return s.Again(b)
}

// stale reports whether what is mounted is not the file at the bind's source any more.
func (s *Stage) stale(b Bind) bool {
	there, err := os.Lstat(b.Real)
	mounted, err2 := os.Lstat(s.Path(b.Token))
	return err == nil && err2 == nil && !os.SameFile(there, mounted)
}
