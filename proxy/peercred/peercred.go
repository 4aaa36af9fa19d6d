// Package peercred says who is on the other end of a Unix socket connection.
package peercred

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Peer is the process that connected, as the kernel knew it at that moment.
type Peer struct {
	// PID is the process id in this process's pid namespace.
	PID int32
	// UID and GID are the effective ids in this process's user namespace; ids
	// that are not mapped into it read as the overflow id 65534.
	UID, GID uint32
	// ContainerID is the 64-digit ID of the container that the process runs in,
	// or "" where it runs in none.
	// It is a claim: users who were given a cgroup of their own can name one in
	// it like a container; see Within.
	ContainerID string

	cgroups string
}

// Groups returns the supplementary groups of the process that opened the other end,
// as they were then.
func (r *Reader) Groups(c *net.UnixConn) ([]uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("groups of the peer: %w", err)
	}
	groups := make([]uint32, 64)
	var errno unix.Errno
	call := func(fd uintptr) {
		size := uint32(len(groups) * 4)
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == unix.ERANGE {
			groups = make([]uint32, size/4)
			_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		}
		groups = groups[:size/4]
	}
	if err := raw.Control(call); err != nil {
		return nil, fmt.Errorf("groups of the peer: %w", err)
	}
	if errno != 0 {
		return nil, fmt.Errorf("groups of the peer: %w", errno)
	}
	return groups, nil
}

// Within reports whether the peer is in the cgroup, named after its container,
// that the process pid is in: pid is the container's first process, which only
// the Engine can place.
func (r *Reader) Within(p Peer, pid int) (bool, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false, fmt.Errorf("cgroup of the container's first process: %w", err)
	}
	return r.within(p, string(text)), nil
}

// within compares the peer's cgroups with those of the container's first process.
func (r *Reader) within(p Peer, first string) bool {
	placed := make(map[string]bool)
	for _, prefix := range prefixes(first, p.ContainerID) {
		placed[prefix] = true
	}
	claims := prefixes(p.cgroups, p.ContainerID)
	for _, prefix := range claims {
		if !placed[prefix] {
			return false
		}
	}
	return len(claims) > 0
}

// prefixes returns, from the text of /proc/PID/cgroup, the beginning of every
// line whose path has id in it, up to the end of the path element that has it.
func prefixes(text, id string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if i := strings.Index(line, id); i >= 0 {
			end := i + len(id)
			if j := strings.IndexAny(line[end:], "/\n"); j >= 0 {
				end += j
			} else {
				end = len(line)
			}
			out = append(out, line[:end])
		}
	}
	return out
}

// Now is the time that Read wants to know: since boot, as the kernel counts the
// start of processes.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// tick is the unit of a process's start time: USER_HZ is 100 on all
// architectures that Docker runs on.
const tick = 10 * time.Millisecond

// ErrGone means that the connecting process ended before it was identified.
var ErrGone = errors.New("the process that connected has ended")

// A Reader identifies peers.
type Reader struct {
	// Own are the container IDs in this process's own cgroup path. They stand
	// in the path of every process beside it and say nothing about a peer.
	Own map[string]bool
}

// NewReader returns a Reader for this process.
func NewReader() (*Reader, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroup: %w", err)
	}
	own := make(map[string]bool)
	for _, id := range containerIDs(string(text)) {
		own[id] = true
	}
	return &Reader{Own: own}, nil
}

// Read identifies the peer of conn. The cgroup is read while a pidfd holds the
// process, so that a reused pid cannot lend another process's cgroup.
//
// SO_PEERCRED is described in unix(7), SO_PEERPIDFD exists since Linux 6.5.
//
// accepted is when, by Now, the connection was accepted: where the kernel has no
// SO_PEERPIDFD, a process that began later only has the caller's pid.
func (r *Reader) Read(conn *net.UnixConn, accepted time.Duration) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var (
		cred  *unix.Ucred
		pidfd = -1
		inner error
	)
	if err := raw.Control(func(fd uintptr) {
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		pidfd, inner = openPeer(int(fd), int(cred.Pid))
	}); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if inner != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", inner)
	}
	defer unix.Close(pidfd)

	p := Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(int(p.PID)) + "/cgroup")
	if err != nil {
		if os.IsNotExist(err) || errors.Is(err, unix.ESRCH) {
			return Peer{}, ErrGone
		}
		return Peer{}, fmt.Errorf("cgroup of pid %d: %w", p.PID, err)
	}
	if err := stillThere(pidfd, p.PID, accepted); err != nil {
		return Peer{}, err
	}
	for _, id := range containerIDs(string(text)) {
		// The outermost is the Engine's placement; what is below may be made by
		// whoever the cgroup was given to.
		if !r.Own[id] {
			p.ContainerID = id
			break
		}
	}
	p.cgroups = string(text)
	return p, nil
}

// pfExiting is PF_EXITING of the kernel's sched.h.
const pfExiting = 0x4

// stillThere reports, as nil, that what was read of pid was true of the process
// that pidfd stands for, which is the one that connected. Two things can make it
// false: the process ended and its pid is another's now, or its first thread is exiting, whether others go on or
// not: on cgroup v1 the kernel shows such a thread in the root cgroup, where a
// container's process must not seem to be.
func stillThere(pidfd int, pid int32, accepted time.Duration) error {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return ErrGone
	}
	// pid (comm) state ppid pgrp session tty_nr tpgid flags …, and comm may hold
	// anything: proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return fmt.Errorf("stat of pid %d is not understood", pid)
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return fmt.Errorf("stat of pid %d: %w", pid, err)
	}
	started, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return fmt.Errorf("stat of pid %d: %w", pid, err)
	}
	if flags&pfExiting != 0 || time.Duration(started)*tick > accepted {
		return ErrGone
	}
	// A pidfd becomes readable when its process has ended: pidfd_open(2).
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("poll pidfd of pid %d: %w", pid, err)
		case n > 0:
			return ErrGone
		}
		return nil
	}
}

// openPeer returns a pidfd of the process that connected.
func openPeer(fd, pid int) (int, error) {
	if pid <= 0 {
		return -1, errors.New("the caller's process is not visible from here (another pid namespace)")
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		unix.CloseOnExec(pidfd)
		return pidfd, nil
	case errors.Is(err, unix.ENOPROTOOPT):
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, ErrGone
	}
	return pidfd, err
}

// idLen is the length of a container ID in hexadecimal digits.
const idLen = 64

// containerIDs finds the container IDs in the text of /proc/PID/cgroup, outer
// ones first: path elements that are an ID (cgroupfs driver) or wear one
// between a prefix and ".scope" (systemd driver).
func containerIDs(text string) []string {
	var ids []string
	for line := range strings.Lines(text) {
		// hierarchy:controllers:path, and the path may hold colons: cgroups(7).
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for elem := range strings.SplitSeq(parts[2], "/") {
			elem = strings.TrimSuffix(elem, ".scope")
			if i := strings.LastIndexByte(elem, '-'); i >= 0 {
				elem = elem[i+1:]
			}
			if len(elem) == idLen && isID(elem) {
				ids = append(ids, elem)
			}
		}
	}
	return ids
}

func isID(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
