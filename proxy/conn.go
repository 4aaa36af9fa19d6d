package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/peercred"
)

// A conn is one client's connection, with the one upstream connection that
// serves it and nobody else.
type conn struct {
	*net.UnixConn
	srv *Server
	on  *listener
	// user is whose socket this is; "" on the shared one.
	user     string
	token    uint64
	accepted time.Duration
	// tallied and counted say what admit took for this connection.
	tallied string
	counted bool

	identified sync.Once
	subject    policy.Subject
	peer       peercred.Peer
	identity   error

	mu sync.Mutex
	// idle is the upstream connection between two requests.
	idle *upstream
	// busy is the upstream connection of the request under way.
	busy *upstream
	// gone is true once the client has closed its end altogether; left is closed then.
	gone bool
	left chan struct{}
	// ended is true once the client has shut down its sending side.
	ended bool
}

// An upstream is a connection to the Engine.
type upstream struct {
	*net.UnixConn
	br *bufio.Reader
	// tunnel is true once half-closing is the tunnel's business.
	tunnel bool
	// sent is true once the whole request is on its way.
	sent bool
	// stays is true where the Engine's answer is awaited whether the client stays or not.
	stays bool
}

// Read reads from the client. The HTTP server reads ahead while a request is
// under way, so this is where the end of the client's stream shows first.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.UnixConn.Read(b)
	if errors.Is(err, io.EOF) {
		c.mu.Lock()
		c.ended = true
		c.passEnd()
		c.mu.Unlock()
	}
	return n, err
}

// passEnd shuts down the sending side towards the Engine where the client did
// so towards us; the Engine then cancels what it is doing, or not, as it would
// without a proxy between. c.mu is held.
func (c *conn) passEnd() {
	if up := c.busy; c.ended && up != nil && up.sent && !up.tunnel && !up.stays {
		_ = up.CloseWrite()
	}
}

// hangUp is called when the client has closed its end altogether.
func (c *conn) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
	if c.idle != nil {
		c.idle.Close()
		c.idle = nil
	}
	switch {
	case c.busy == nil, c.busy.stays:
	case c.busy.tunnel:
		// Nobody reads the output any more; what the client sent before it left is
		// still delivered.
		_ = c.busy.SetReadDeadline(time.Now())
		_ = c.busy.SetWriteDeadline(time.Now().Add(drainTime))
	default:
		c.busy.Close()
	}
}

// leave says that the client has gone. c.mu is held.
func (c *conn) leave() {
	if !c.gone {
		c.gone = true
		close(c.left)
	}
}

// drainTime is how long what a client sent into a tunnel before it left may take
// to be delivered.
const drainTime = 10 * time.Second

// Close closes the client's connection and the upstream one with it.
func (c *conn) Close() error {
	c.srv.hangups.forget(c.token)
	c.on.forget(c)
	c.mu.Lock()
	c.leave()
	c.srv.dismiss(c)
	for _, up := range []*upstream{c.idle, c.busy} {
		if up != nil && !up.stays {
			up.Close()
		}
	}
	c.idle = nil
	c.mu.Unlock()
	return c.UnixConn.Close()
}

// errClientGone ends a request whose client left.
var errClientGone = errors.New("the client has gone")

// takeUpstream returns the connection's own upstream connection, dialling where
// there is none yet or the Engine has closed it meanwhile. tunnel says that it may
// become a tunnel, stays that the answer is awaited even if the client leaves.
func (c *conn) takeUpstream(tunnel, stays bool) (*upstream, error) {
	c.mu.Lock()
	up := c.idle
	c.idle = nil
	c.mu.Unlock()
	if up != nil && !stillOpen(up) {
		up.Close()
		up = nil
	}
	if up == nil {
		raw, err := dialEngine(c.srv.engineAddr)
		if err != nil {
			return nil, &unreachableError{c.srv.engineAddr.Name, err}
		}
		up = &upstream{UnixConn: raw, br: bufio.NewReaderSize(raw, 4<<10)}
	}
	up.sent, up.tunnel, up.stays = false, tunnel, stays
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		up.Close()
		return nil, errClientGone
	}
	c.busy = up
	return up, nil
}

// startTunnel says that half-closing and hanging up are the tunnel's business from
// here on; it reports false where the client has gone already.
func (c *conn) startTunnel(up *upstream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	up.tunnel = true
	return !c.gone
}

// dialEngine connects to the Engine. A listener whose queue is full for the
// moment answers EAGAIN at once: connect(2); that is waited out for a second.
func dialEngine(addr *net.UnixAddr) (*net.UnixConn, error) {
	for tries := 0; ; tries++ {
		raw, err := net.DialUnix("unix", nil, addr)
		if err == nil || tries == 100 || !errors.Is(err, unix.EAGAIN) {
			return raw, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sent says that the request is on its way as a whole.
func (c *conn) sent(up *upstream) {
	c.mu.Lock()
	up.sent = true
	c.passEnd()
	c.mu.Unlock()
}

// isGone reports whether the client has closed its end altogether.
func (c *conn) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// putUpstream ends the use of up: it is kept for the next request, or closed.
func (c *conn) putUpstream(up *upstream, keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = nil
	if keep && !c.gone && !c.ended && up.br.Buffered() == 0 {
		c.idle = up
		return
	}
	up.Close()
}

// stillOpen reports whether an idle connection can carry another request: the
// Engine has neither closed it nor sent something that nobody asked for.
func stillOpen(up *upstream) bool {
	raw, err := up.SyscallConn()
	if err != nil {
		return false
	}
	open := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, rerr := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		open = errors.Is(rerr, unix.EAGAIN)
	})
	return err == nil && open
}

// An unreachableError says that the Engine's socket could not be connected to.
type unreachableError struct {
	socket string
	err    error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("cannot reach the Docker Engine at unix://%s: %v. Is it running? Try again in a moment, or tell your admin.", e.socket, cause(e.err))
}

func (e *unreachableError) Unwrap() error { return e.err }

// cause strips the address that net's errors repeat.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
