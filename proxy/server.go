// Package proxy is the HTTP daemon that stands between users and the Docker
// Engine: listeners, the route table, guards, rewrites, filters and tunnels.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/proxy/peercred"
)

// A Server answers users on their sockets.
type Server struct {
	Options
	engineAddr *net.UnixAddr
	routes     *router
	hangups    *hangups
	volumes    volumeBook
	// starts are held, by user, while containers start or go, and alone while an archive
	// is made ready.
	starts     userLocks
	stagedPath *regexp.Regexp
	roots      roots
	// conns counts connections by user, open the descriptors of all, buffered the
	// bytes of bodies by user.
	conns, open, buffered *tally
	// opening counts paths of the host that are being opened, by user.
	opening *tally
	// naming is held while a network is made, so that two of one name do not come
	// to be.
	naming sync.Mutex
	http   *http.Server
	// closing guards closed, after which listeners grows no more.
	closing   sync.Mutex
	closed    bool
	listeners sync.WaitGroup
}

// readHeaderTimeout is how long a client may take to send a request's header;
// the Engine's own server waits as long.
const readHeaderTimeout = 5 * time.Minute

type connKey struct{}

// New returns a Server that answers nobody yet.
func New(o Options) (*Server, error) {
	h, err := newHangups()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Options:    o,
		engineAddr: &net.UnixAddr{Name: o.Engine, Net: "unix"},
		routes:     newRouter(table()),
		hangups:    h,
		conns:      newTally(maxConns),
		open:       newTally(max(descriptors()-reservedFDs, 64)),
		buffered:   newTally(maxBuffered),
		opening:    newTally(maxOpening),
		stagedPath: stagedPath(o.StageDir),
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		MaxHeaderBytes:    maxHeader,
		// Between requests a connection may stay idle for ever, as on the raw
		// socket; the kernel says when its client is gone.
		IdleTimeout: 0,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ErrorLog: zap.NewStdLog(o.Log.Named("http")),
	}
	go h.run()
	return s, nil
}

// Serve answers on l, user's socket or, with "", the shared one, until l is
// closed; then it closes the connections that came in there. It returns nil when
// it ends because of that, or when the server is closed already.
func (s *Server) Serve(l *net.UnixListener, user string) error {
	if !s.begin() {
		return l.Close()
	}
	defer s.listeners.Done()
	own := &listener{UnixListener: l, srv: s, user: user, conns: make(map[*conn]struct{})}
	defer own.hangUpAll()
	err := s.http.Serve(own)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// begin counts a listener, unless the server is closed.
func (s *Server) begin() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if !s.closed {
		s.listeners.Add(1)
	}
	return !s.closed
}

// Close ends all connections and listeners. Once is enough; more does nothing.
func (s *Server) Close() error {
	s.closing.Lock()
	again := s.closed
	s.closed = true
	s.closing.Unlock()
	if again {
		return nil
	}
	err := s.http.Close()
	s.listeners.Wait()
	return errors.Join(err, s.hangups.close())
}

// A listener accepts on one socket.
type listener struct {
	*net.UnixListener
	srv  *Server
	user string

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// Accept waits for the next client that may stay.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		c := &conn{UnixConn: raw, srv: l.srv, user: l.user, on: l, left: make(chan struct{}), accepted: peercred.Now()}
		if refusal := l.srv.admit(c); refusal != nil {
			// Not here: others are waiting to be accepted.
			go turnAway(raw, refusal)
			continue
		}
		if c.token, err = l.srv.hangups.watch(raw, c.hangUp); err != nil {
			// One client's trouble must not end the socket.
			l.srv.Log.Error("a connection was not accepted", zap.Error(err))
			l.srv.dismiss(c)
			raw.Close()
			continue
		}
		l.mu.Lock()
		l.conns[c] = struct{}{}
		l.mu.Unlock()
		return c, nil
	}
}

// turnAway answers a client that may not stay, whatever it was about to ask.
func turnAway(c *net.UnixConn, why *statusError) {
	body := errorBody(why.message)
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		why.status, http.StatusText(why.status), len(body), body)
	// What the client has sent already is taken, or the kernel would reset the
	// connection before the answer is read.
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, _ = c.Read(make([]byte, 4<<10))
	c.Close()
}

// forget drops a connection that has closed.
func (l *listener) forget(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// hangUpAll closes every connection that came in here.
func (l *listener) hangUpAll() {
	l.mu.Lock()
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
