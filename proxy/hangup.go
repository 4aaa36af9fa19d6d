package proxy

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// hangups tells when the other end of a Unix socket has closed it altogether,
// whatever is still unread and although nobody reads. The runtime's poller does
// not say: to a reader, a peer that only shut down its sending side looks the
// same. The kernel reports the former as EPOLLHUP, the latter as EPOLLRDHUP.
type hangups struct {
	epoll *os.File
	fd    int

	mu    sync.Mutex
	next  uint64
	calls map[uint64]func()
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// Non-blocking, so that the runtime polls the epoll descriptor itself and no
	// thread waits in it.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &hangups{epoll: os.NewFile(uintptr(fd), "epoll"), fd: fd, calls: make(map[uint64]func())}, nil
}

// watch calls f once, from another goroutine, when the peer of c has closed.
// The watch ends with the token's forget; f must not block.
func (h *hangups) watch(c *net.UnixConn, f func()) (token uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("watch for hang-up: %w", err)
	}
	h.mu.Lock()
	h.next++
	token = h.next
	h.calls[token] = f
	h.mu.Unlock()
	var inner error
	err = raw.Control(func(fd uintptr) {
		// EPOLLHUP is always reported and need not be asked for: epoll_ctl(2).
		inner = unix.EpollCtl(h.fd, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{
			Events: unix.EPOLLONESHOT,
			Fd:     int32(token), // the token travels in the event's data
			Pad:    int32(token >> 32),
		})
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		h.forget(token)
		return 0, fmt.Errorf("watch for hang-up: %w", err)
	}
	return token, nil
}

// forget ends a watch. Closing the connection takes it out of the epoll set.
func (h *hangups) forget(token uint64) {
	h.mu.Lock()
	delete(h.calls, token)
	h.mu.Unlock()
}

// run delivers hang-ups until close is called.
func (h *hangups) run() {
	raw, err := h.epoll.SyscallConn()
	if err != nil {
		return
	}
	events := make([]unix.EpollEvent, 64)
	for {
		var n int
		if err := raw.Read(func(fd uintptr) bool {
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0
		}); err != nil {
			return
		}
		for _, e := range events[:n] {
			token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			h.mu.Lock()
			f := h.calls[token]
			delete(h.calls, token)
			h.mu.Unlock()
			if f != nil {
				f()
			}
		}
	}
}

func (h *hangups) close() error { return h.epoll.Close() }
