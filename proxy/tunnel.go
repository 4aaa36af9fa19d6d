package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// tunnel connects client and Engine after the Engine has agreed, until both
// directions have ended or one end has closed altogether.
func (x *exchange) tunnel(up *upstream, resp *http.Response) error {
	hijacker, ok := x.w.(http.Hijacker)
	if !ok {
		return errors.New("the connection cannot be taken over")
	}
	x.wroteHeader = true
	_, buffered, err := hijacker.Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	c := x.conn
	defer c.Close()
	defer up.Close()
	if err := c.SetDeadline(time.Time{}); err != nil || !c.startTunnel(up) {
		return nil
	}

	// An Engine that has closed altogether reads no more input; the client's own
	// closing is conn.hangUp's business.
	token, err := x.srv.hangups.watch(up.UnixConn, func() { _ = c.SetReadDeadline(time.Now()) })
	if err != nil {
		return nil
	}
	defer x.srv.hangups.forget(token)
	head, err := responseHead(resp)
	if err != nil {
		return nil
	}
	if _, err := c.Write(head); err != nil {
		return nil
	}

	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := drainBuffer(up.UnixConn, buffered.Reader); err == nil {
			_ = pump(up.UnixConn, c.UnixConn)
		}
		// The end of the client's input, and not of its interest in the output.
		_ = up.CloseWrite()
	}()
	if err := drainBuffer(c.UnixConn, up.br); err == nil {
		_ = pump(c.UnixConn, up.UnixConn)
	}
	_ = c.CloseWrite()
	<-sent
	return nil
}

// responseHead is the Engine's status line and headers, to be written to a
// connection that has been taken over.
func responseHead(resp *http.Response) ([]byte, error) {
	head := fmt.Appendf(nil, "HTTP/1.1 %s\r\n", resp.Status)
	var w sliceWriter = head
	if err := resp.Header.Write(&w); err != nil {
		return nil, err
	}
	return append(w, "\r\n"...), nil
}

type sliceWriter []byte

func (w *sliceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// drainBuffer writes what br has read already.
func drainBuffer(dst *net.UnixConn, br *bufio.Reader) error {
	n := br.Buffered()
	if n == 0 {
		return nil
	}
	p, err := br.Peek(n)
	if err != nil {
		return err
	}
	_, err = dst.Write(p)
	return err
}

// pump copies src to dst until src ends. It holds a buffer only while there is
// something in it: a tunnel may be silent for hours.
func pump(dst, src *net.UnixConn) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	var (
		buf  *[]byte
		n    int
		rerr error
	)
	readable := func(fd uintptr) bool {
		buf = getBuffer()
		for {
			n, rerr = unix.Read(int(fd), *buf)
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if errors.Is(rerr, unix.EAGAIN) {
			putBuffer(buf)
			buf = nil
			return false
		}
		return true
	}
	for {
		if err := raw.Read(readable); err != nil {
			return err
		}
		if rerr == nil && n == 0 {
			rerr = io.EOF
		}
		if rerr == nil {
			_, rerr = dst.Write((*buf)[:n])
		}
		putBuffer(buf)
		buf = nil
		if rerr != nil {
			if errors.Is(rerr, io.EOF) {
				return nil
			}
			return rerr
		}
	}
}
