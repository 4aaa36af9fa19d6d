package layers

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// enginePID is who listens on the Engine's socket: the Engine, or systemd, which then
// has the mounts of an Engine that it starts without a mount namespace of its own.
func (h *Host) enginePID() (int, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		return 0, fmt.Errorf("the Engine's process: %w", err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("the Engine's process: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("the Engine's process: %w", err)
	}
	if failed != nil {
		return 0, fmt.Errorf("the Engine's process: %w", failed)
	}
	if cred.Pid <= 0 {
		return 0, errors.New("the Engine's process is not one of this machine's")
	}
	return int(cred.Pid), nil
}

// within calls f in the mount namespace of a process, on a thread of its own.
func within(pid int, f func(*mountTable) error) error {
	list, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return fmt.Errorf("the Engine's mounts: %w", err)
	}
	defer list.Close()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("the Engine's mounts: %w", err)
	}
	defer ns.Close()
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("the daemon's mounts: %w", err)
	}
	if theirs, err := ns.Stat(); err == nil && os.SameFile(own, theirs) {
		return f(&mountTable{list})
	}
	done := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		done <- f(&mountTable{list})
	}()
	return <-done
}

// A mountTable reads mounts.
type mountTable struct{ file *os.File }

type mountPoint struct {
	point            string
	nofollow, shared bool
}

type mountList []mountPoint

func (t *mountTable) read() (mountList, error) {
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	text, err := io.ReadAll(t.file)
	if err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return parseMounts(string(text)), nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// parseMounts reads proc_pid_mountinfo(5).
func parseMounts(text string) mountList {
	var list mountList
	for line := range strings.Lines(text) {
		left, _, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if len(f) < 6 {
			continue
		}
		m := mountPoint{point: unescape.Replace(f[4])}
		for o := range strings.SplitSeq(f[5], ",") {
			m.nofollow = m.nofollow || o == "nosymfollow"
		}
		for _, o := range f[6:] {
			m.shared = m.shared || strings.HasPrefix(o, "shared:")
		}
		list = append(list, m)
	}
	return list
}

// shared reports whether the mount that a path is on is shared.
func (l mountList) shared(path string) bool {
	best, is := -1, false
	for _, m := range l {
		dir := strings.TrimSuffix(m.point, "/")
		if (path == dir || strings.HasPrefix(path, dir+"/")) && len(dir) >= best {
			best, is = len(dir), m.shared
		}
	}
	return is
}

// below reports whether anything is mounted below a path.
func (l mountList) below(path string) bool {
	for _, m := range l {
		if strings.HasPrefix(m.point, path+"/") {
			return true
		}
	}
	return false
}

func isMount(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st); errors.Is(err, unix.ENOENT) {
		// The Engine removes a container's place when it is unmounted.
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("this kernel does not tell mounts")
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// stNoSymFollow is ST_NOSYMFOLLOW of statfs(2).
const stNoSymFollow = 0x2000

// follows reports whether the mount at a path follows links.
func follows(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Flags&stNoSymFollow == 0, nil
}

func setAttr(path string, set, clr uint64) error {
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clr}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &attr); err != nil {
		return fmt.Errorf("mount_setattr %s: %w", path, err)
	}
	return nil
}

func detach(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
