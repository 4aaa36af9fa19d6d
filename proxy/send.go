package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// sendBody sends the request's body. What is in memory is sent at once; the
// client's stream is sent from another goroutine, since the Engine may answer
// before it has read everything: the channel then says how that ended.
func (x *exchange) sendBody(up *upstream, out *outgoing) (sending chan error, err error) {
	switch body := out.body.(type) {
	case nil:
		x.conn.sent(up)
		return nil, nil
	case *bytes.Reader:
		if _, err := body.WriteTo(up); err != nil {
			return nil, &unreachableError{x.srv.Engine, err}
		}
		x.conn.sent(up)
		return nil, nil
	}
	if out.length == 0 {
		x.conn.sent(up)
		return nil, nil
	}
	sending = make(chan error, 1)
	go func() {
		err := copyBody(up, out)
		if err == nil {
			x.conn.sent(up)
		}
		var fromClient *readError
		if errors.As(err, &fromClient) {
			// The rest will not come: the Engine must not take the part for the whole.
			up.Close()
		}
		sending <- err
	}()
	return sending, nil
}

// A readError is an error of the side that is read from.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// copyBody copies the client's body to the Engine, in chunks where its length
// is not known.
func copyBody(up *upstream, out *outgoing) error {
	buf := getBuffer()
	defer putBuffer(buf)
	left := out.length
	for left != 0 {
		n, rerr := out.body.Read(*buf)
		if n > 0 {
			var werr error
			if out.length < 0 {
				werr = writeChunk(up, (*buf)[:n])
			} else {
				_, werr = up.Write((*buf)[:n])
				left -= int64(n)
			}
			if werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(rerr, io.EOF) && out.length < 0:
			_, err := io.WriteString(up, "0\r\n\r\n")
			return err
		case errors.Is(rerr, io.EOF) && left == 0:
			return nil
		case errors.Is(rerr, io.EOF):
			return &readError{io.ErrUnexpectedEOF}
		case rerr != nil:
			return &readError{rerr}
		}
	}
	return nil
}

// writeChunk writes one chunk with a single system call.
func writeChunk(up *upstream, p []byte) error {
	head := append(strconv.AppendInt(make([]byte, 0, 12), int64(len(p)), 16), "\r\n"...)
	chunk := net.Buffers{head, p, []byte("\r\n")}
	_, err := chunk.WriteTo(up.UnixConn)
	return err
}

// sentAlready reports whether the whole body has been sent, and leaves the word
// about it in the channel. The sender may be a moment behind the Engine.
func sentAlready(sending chan error) bool {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case err := <-sending:
		sending <- err
		return err == nil
	case <-timer.C:
		return false
	}
}

// lingerForBody is how long a client may go on sending a body that the Engine
// has stopped reading.
const lingerForBody = 500 * time.Millisecond

// awaitSender waits for the rest of the request's body after the Engine has
// answered, and reports whether all of it was sent.
func (x *exchange) awaitSender(up *upstream, resp *http.Response, sending chan error) bool {
	timer := time.NewTimer(lingerForBody)
	defer timer.Stop()
	for {
		select {
		case err := <-sending:
			return err == nil
		case <-timer.C:
			if !resp.Close && stillOpen(up) {
				timer.Reset(lingerForBody)
				continue
			}
			up.Close()
			_ = x.conn.SetReadDeadline(time.Unix(1, 0))
		}
	}
}
