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
	ContainerID string
}

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
func (r *Reader) Read(conn *net.UnixConn) (Peer, error) {
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
	if err := stillThere(pidfd, p.PID); err != nil {
		return Peer{}, err
	}
	for _, id := range containerIDs(string(text)) {
		if !r.Own[id] {
			p.ContainerID = id
		}
	}
	return p, nil
}

// pfExiting is PF_EXITING of the kernel's sched.h.
const pfExiting = 0x4

// stillThere reports, as nil, that what was read of pid was true of the process
// that pidfd stands for. Two things can make it false: the process ended and its
// pid is another's now, or its first thread is exiting, whether others go on or
// not: on cgroup v1 the kernel shows such a thread in the root cgroup, where a
// container's process must not seem to be.
func stillThere(pidfd int, pid int32) error {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return ErrGone
	}
	// pid (comm) state ppid pgrp session tty_nr tpgid flags …, and comm may hold
	// anything: proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 7 {
		return fmt.Errorf("stat of pid %d is not understood", pid)
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return fmt.Errorf("stat of pid %d: %w", pid, err)
	}
	if flags&pfExiting != 0 {
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
