// Command passfd hands an open directory over a Unix socket, and reads a file below
// one that it was handed. It is built without cgo, to run inside containers too.
package main

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: passfd give SOCKET DIRECTORY | passfd take SOCKET FILE")
		os.Exit(2)
	}
	act := take
	if os.Args[1] == "give" {
		act = give
	}
	if err := act(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "passfd:", err)
		os.Exit(1)
	}
}

// give hands the directory to whoever comes, for as long as it runs.
func give(socket, dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		return err
	}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, c)
	}
}

// take prints a file below the directory that it is handed.
func take(socket, file string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("no descriptor came: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	fd, err := unix.Openat(fds[0], file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s below it: %w", file, err)
	}
	_, err = io.Copy(os.Stdout, os.NewFile(uintptr(fd), file))
	return err
}
