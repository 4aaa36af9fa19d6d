package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What one user may take of the daemon, so that nobody takes it from others.
const (
	// maxConns is how many connections a user may have open on a socket.
	maxConns = 1024
	// maxHeader is the size, in bytes, of a request's line and headers.
	maxHeader = 128 << 10
	// maxBuffered is how many bytes of bodies that are read to decide on them a
	// user may have in flight.
	maxBuffered = 32 << 20
	// maxTokens is how many values a JSON body may have: each becomes tens of bytes
	// in memory and in what is forwarded.
	maxTokens = 100_000
	// reservedFDs are the descriptors that are kept for the daemon itself and for
	// root: no user's connection is accepted into the last of them.
	reservedFDs = 256
)

// A tally counts what each user has of something.
type tally struct {
	mu   sync.Mutex
	most int64
	have map[string]int64
}

func newTally(most int64) *tally { return &tally{most: most, have: make(map[string]int64)} }

// take takes n for a user, or reports that it would be more than the user may
// have.
func (t *tally) take(user string, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have[user]+n > t.most {
		return false
	}
	t.have[user] += n
	return true
}

// give gives n back.
func (t *tally) give(user string, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have[user] -= n; t.have[user] <= 0 {
		delete(t.have, user)
	}
}

// admit decides whether a connection may stay: its user has not too many, and
// the daemon has descriptors left. It returns what the client is to read where
// not.
func (s *Server) admit(c *conn) *statusError {
	key := "user " + c.user
	if c.user == "" {
		uid, err := peerUID(c)
		if err != nil {
			return &statusError{http.StatusServiceUnavailable, "cannot tell who you are: " + err.Error()}
		}
		key = fmt.Sprint("uid ", uid)
	}
	if !s.conns.take(key, 1) {
		return &statusError{http.StatusTooManyRequests, fmt.Sprintf("you have %d connections open, which is the limit; close some", maxConns)}
	}
	c.tallied = key
	// A connection that is used takes two descriptors.
	if key != "uid 0" && !s.open.take("all", 2) {
		s.conns.give(key, 1)
		c.tallied = ""
		return &statusError{http.StatusServiceUnavailable, "this server's proxy has no room for more connections; try again in a moment, or tell your admin"}
	}
	c.counted = key != "uid 0"
	return nil
}

// dismiss gives back what admit took.
func (s *Server) dismiss(c *conn) {
	if c.tallied == "" {
		return
	}
	s.conns.give(c.tallied, 1)
	if c.counted {
		s.open.give("all", 2)
	}
	c.tallied = ""
}

func peerUID(c *conn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, inner
	}
	return cred.Uid, nil
}

// descriptors is how many descriptors this process may have; the Go runtime has
// raised the soft limit to the hard one at start.
func descriptors() int64 {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 1024
	}
	return int64(min(lim.Cur, 1<<30))
}

// passing reports whether an error comes of a shortage that passes: it says
// nothing about who the caller is.
func passing(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tooManyTokens reports whether JSON text has more values than are decoded. It
// counts separators and brackets outside of strings, and decides nothing else.
func tooManyTokens(text []byte) bool {
	n := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case ',', '[', '{':
			if n++; n > maxTokens {
				return true
			}
		}
	}
	return false
}
