// Package binds puts directories of the host before containers in a form that
// cannot be turned against the host: opened as the user would, and mounted anew
// without set-user-id programs and devices, with the user's files alone mapped to
// the container's user.
package binds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Caller is who a source is opened for: what the kernel asks when it decides about
// a path.
type Caller struct {
	UID, GID uint32
	Groups   []uint32
}

// An OpenError says why a source is not opened, for the user who named it.
type OpenError struct {
	Path string
	// Real is the path without links, where the caller reached it and may not use it.
	Real string
	Err  error
}

// Error returns the sentence that the user reads.
func (e *OpenError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

// Unwrap returns the kernel's error.
func (e *OpenError) Unwrap() error { return e.Err }

// Open opens path as the caller would reach it: their own permission to search every
// directory on the way decides, and to read the thing itself, and to write it where
// write is true. Links are followed as the caller would, but not those of /proc that
// lead out of it. A missing directory is made as the caller, where create, asked
// about the path without links of what there is above it, says so. The file
// returned is only a place (O_PATH); real is its path without links.
func Open(c Caller, path string, write bool, create func(real string) bool) (f *os.File, real string, err error) {
	type result struct {
		fd   int
		real string
		err  error
	}
	done := make(chan result)
	go func() {
		// The thread takes the caller's rights and ends with them: it is never unlocked.
		runtime.LockOSThread()
		fd, real, err := openAs(c, path, write, create)
		done <- result{fd, real, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, "", &OpenError{path, r.real, r.err}
	}
	return os.NewFile(uintptr(r.fd), path), r.real, nil
}

// openTimeout is how long a path may take to be opened: a file system of the user's
// own (FUSE) may never answer, and holds a thread until it does.
const openTimeout = 10 * time.Second

// errSilent is what is wrong with such a path.
var errSilent = fmt.Errorf("its file system does not answer within %v", openTimeout)

// OpenSoon is Open for who cannot wait: it gives up on a path that does not answer.
// ended is called when the thread is free again.
func OpenSoon(c Caller, path string, write bool, create func(real string) bool, ended func()) (*os.File, string, error) {
	type result struct {
		f    *os.File
		real string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		f, real, err := Open(c, path, write, create)
		ended()
		done <- result{f, real, err}
	}()
	select {
	case r := <-done:
		return r.f, r.real, r.err
	case <-time.After(openTimeout):
		go func() {
			if r := <-done; r.f != nil {
				r.f.Close()
			}
		}()
		return nil, "", &OpenError{Path: path, Err: errSilent}
	}
}

// realPath is the path of an open file, without links.
func realPath(fd int) (string, error) { return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)) }

// openAs runs on a thread of its own, whose rights it changes.
func openAs(c Caller, path string, write bool, create func(string) bool) (fd int, real string, err error) {
	if err := become(c); err != nil {
		return -1, "", err
	}
	path = filepath.Clean(path)
	fd, err = place(unix.AT_FDCWD, path, 0)
	if errors.Is(err, unix.ENOENT) && create != nil {
		fd, err = makeAll(path, create)
	}
	if err != nil {
		return -1, "", err
	}
	if real, err = realPath(fd); err == nil {
		err = mayUse(fd, write)
	}
	if err != nil {
		return -1, real, errors.Join(err, unix.Close(fd))
	}
	return fd, real, nil
}

// mayUse asks whether the thread may read what fd is a place of, and write it.
func mayUse(fd int, write bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	mode := uint32(unix.R_OK)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		mode |= unix.X_OK
	}
	if write {
		mode |= unix.W_OK
	}
	return unix.Faccessat2(fd, "", mode, unix.AT_EMPTY_PATH|unix.AT_EACCESS)
}

// become gives the calling thread alone the caller's rights to files. The kernel's
// calls are used as they are, since the libraries' change all threads.
func become(c Caller) error {
	groups := c.Groups
	var list *uint32
	if len(groups) > 0 {
		list = &groups[0]
	}
	if err := setGroups(list, len(groups)); err != nil {
		return fmt.Errorf("take the caller's groups: %w", err)
	}
	// These two return the former value and no error: asking again tells.
	_, _ = unix.SetfsgidRetGid(int(c.GID))
	_, _ = unix.SetfsuidRetUid(int(c.UID))
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if uint32(gid) != c.GID || uint32(uid) != c.UID {
		return errors.New("the kernel does not let this process act as the caller")
	}
	return nil
}

// place opens a path as a place, without the links of /proc that lead anywhere.
func place(dir int, path string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// makeAll makes a directory and those above it that are missing, as the caller,
// below the nearest that there is, if create says so of that one.
func makeAll(path string, create func(real string) bool) (int, error) {
	above, missing := filepath.Split(path)
	above = filepath.Clean(above)
	dir, err := place(unix.AT_FDCWD, above, unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && above != "/" {
		dir, err = makeAll(above, create)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	real, err := realPath(dir)
	if err != nil {
		return -1, err
	}
	if !create(real) {
		return -1, unix.ENOENT
	}
	if err := unix.Mkdirat(dir, missing, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return place(dir, missing, unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// known is what the kernel knows of a file already: its file system, which may not
// answer, is not asked.
func known(f *os.File) (*unix.Statx_t, error) {
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_MNT_ID
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, want, &st)
	return &st, err
}

// identity says which thing a file is a place of.
func identity(f *os.File) (device, inode uint64, err error) {
	st, err := known(f)
	if err != nil {
		return 0, 0, err
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, nil
}

// NoSuidNoDev reports whether a file is on a file system of the host that honours
// neither set-user-id programs nor devices.
func NoSuidNoDev(f *os.File) (bool, error) {
	st, err := known(f)
	if err != nil {
		return false, err
	}
	id, safe := strconv.FormatUint(st.Mnt_id, 10), false
	err = eachMount(func(fields []string) {
		if fields[0] == id {
			options := strings.Split(fields[5], ",")
			safe = slices.Contains(options, "nosuid") && slices.Contains(options, "nodev")
		}
	})
	return safe, err
}
