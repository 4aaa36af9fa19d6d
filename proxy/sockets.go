package proxy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Sockets keeps the socket files of one run directory:
//
//	users/<user>.sock   one per user, mode 0600, the user's
//	docker.sock         the shared one, mode 0666, wherever it is configured
type Sockets struct {
	srv    *Server
	log    *zap.Logger
	dir    string
	shared string
	lock   *os.File

	mu   sync.Mutex
	open map[string]*net.UnixListener // by path
	uids map[string]uint32
}

// An Owner is a user to have a socket.
type Owner struct {
	Name string
	UID  uint32
}

// maxPath is the longest path of a Unix socket, in bytes: unix(7), less the
// final NUL.
const maxPath = 107

// OpenSockets prepares dir, which only one process may use at a time, and opens
// the shared socket at path shared, unless that is "".
func OpenSockets(srv *Server, dir, shared string, log *zap.Logger) (*Sockets, error) {
	s := &Sockets{srv: srv, log: log, dir: dir, shared: shared,
		open: make(map[string]*net.UnixListener), uids: make(map[string]uint32)}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{dir, 0o755}, {s.usersDir(), 0o755}, {s.newDir(), 0o700}} {
		if err := ownDir(d.path, d.mode); err != nil {
			return nil, err
		}
	}
	var err error
	if s.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if shared == "" {
		return s, nil
	}
	if err := s.listen(shared, "", 0, 0o666); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sockets) usersDir() string { return filepath.Join(s.dir, "users") }
func (s *Sockets) newDir() string   { return filepath.Join(s.dir, ".new") }

// Path returns the path of a user's socket.
func (s *Sockets) Path(user string) string { return UserSocket(s.dir, user) }

// UserSocket returns the path of a user's socket in a run directory.
func UserSocket(dir, user string) string {
	return filepath.Join(dir, "users", user+".sock")
}

// ownDir makes a directory that belongs to this process's user and that nobody
// else can write to.
func ownDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("run directory %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("run directory %s is not a directory of uid %d; remove it or name another with --run-dir", path, os.Geteuid())
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	return nil
}

// lockDir makes sure that no other process serves from dir.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, ".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another ds01-proxy serves from %s; stop it, or name another directory with --run-dir", dir)
	}
	return f, nil
}

// Update opens a socket for every owner who has none and closes those of others.
// It goes on past failures and returns them together.
func (s *Sockets) Update(owners []Owner) (opened, closed int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	want := make(map[string]bool, len(owners))
	for _, o := range owners {
		if strings.ContainsAny(o.Name, "/\x00") || strings.HasPrefix(o.Name, ".") {
			errs = append(errs, fmt.Errorf("user name %q cannot be a file name; this user has only the shared socket", o.Name))
			continue
		}
		path := s.Path(o.Name)
		want[path] = true
		if _, is := s.open[path]; is && s.uids[path] == o.UID {
			continue
		}
		// A name that is another uid's now is another user's.
		s.drop(path)
		if err := s.listen(path, o.Name, o.UID, 0o600); err != nil {
			errs = append(errs, err)
			continue
		}
		opened++
	}
	for path := range s.open {
		if !want[path] && path != s.shared {
			s.drop(path)
			closed++
		}
	}
	return opened, closed, errors.Join(errs...)
}

// listen opens a socket at path and serves it. The file appears there with its
// owner and mode already set.
func (s *Sockets) listen(path, user string, uid uint32, mode os.FileMode) error {
	if len(path) > maxPath {
		return fmt.Errorf("socket path %s is longer than %d bytes, which Linux does not allow; choose a shorter directory with --run-dir", path, maxPath)
	}
	if err := replaceable(path); err != nil {
		return err
	}
	staged := filepath.Join(s.newDir(), "s")
	if err := os.Remove(staged); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: staged, Net: "unix"})
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	for _, step := range []func() error{
		func() error { return os.Chmod(staged, mode) },
		func() error { return os.Lchown(staged, int(uid), 0) },
		func() error { return rename(staged, path) },
	} {
		if err := step(); err != nil {
			l.Close()
			_ = os.Remove(staged)
			return fmt.Errorf("socket %s: %w", path, err)
		}
	}
	s.open[path], s.uids[path] = l, uid
	go func() {
		if err := s.srv.Serve(l, user); err != nil {
			s.log.Error("a socket is not served any more", zap.String("socket", path), zap.Error(err))
		}
	}()
	return nil
}

// rename moves a socket to its place, over file systems where it must: the
// shared one may be configured anywhere.
func rename(staged, path string) error {
	err := os.Rename(staged, path)
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%w; keep the shared socket on the file system of the run directory", err)
	}
	return err
}

// replaceable returns nil where nothing stands at path, or a socket that nobody
// listens on.
func replaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return fmt.Errorf("socket %s: %w", path, err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket; move it away", path)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		c.Close()
		return fmt.Errorf("another process listens on %s; stop it, or choose another path", path)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("another process may listen on %s: %w", path, err)
}

// drop closes a socket and removes its file.
func (s *Sockets) drop(path string) {
	l := s.open[path]
	if l == nil {
		return
	}
	delete(s.open, path)
	delete(s.uids, path)
	_ = os.Remove(path)
	l.Close()
}

// Close closes all sockets and removes their files.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.open {
		s.drop(path)
	}
	return s.lock.Close()
}
