package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// An answer passes the Engine's 200 on in a form that the caller may see. It
// must read the whole body.
type answer func(x *exchange, up *upstream, resp *http.Response) error

// bufferSize is the size, in bytes, of the buffers that bodies and tunnels are
// copied through.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any {
	b := make([]byte, bufferSize)
	return &b
}}

func getBuffer() *[]byte {
	if b, ok := buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, bufferSize)
	return &b
}

func putBuffer(b *[]byte) { buffers.Put(b) }

// begin writes the status and the Engine's headers. What follows has length
// bytes; -1 means that it ends when it ends.
func (x *exchange) begin(resp *http.Response, length int64) {
	h := x.w.Header()
	for key, values := range resp.Header {
		if !isHopByHop(key) {
			h[key] = values
		}
	}
	if length >= 0 && len(resp.Header["Content-Length"]) > 0 {
		h["Content-Length"] = resp.Header["Content-Length"]
	}
	if v := h["Api-Version"]; x.highest != "" && len(v) == 1 && v[0] != x.highest {
		h["Api-Version"] = []string{x.highest}
	}
	if _, ok := h["Content-Type"]; !ok {
		// Nil keeps the server from guessing one.
		h["Content-Type"] = nil
	}
	if _, ok := h["Date"]; !ok {
		h["Date"] = nil
	}
	x.wroteHeader = true
	x.w.WriteHeader(resp.StatusCode)
}

// pass passes the answer on as it is.
func (x *exchange) pass(up *upstream, resp *http.Response) error {
	defer resp.Body.Close()
	x.begin(resp, resp.ContentLength)
	stream := resp.ContentLength < 0
	flush := http.NewResponseController(x.w).Flush
	if resp.Body == http.NoBody {
		return nil
	}
	if stream {
		// The header goes out before the first byte comes.
		if err := flush(); err != nil {
			return errClientGone
		}
	}
	for {
		// Wait without holding a buffer: a stream may be silent for hours.
		if up.br.Buffered() == 0 {
			_, _ = up.br.Peek(1)
		}
		buf := getBuffer()
		n, rerr := resp.Body.Read(*buf)
		var werr error
		if n > 0 {
			_, werr = x.w.Write((*buf)[:n])
		}
		putBuffer(buf)
		if werr == nil && n > 0 && stream {
			werr = flush()
		}
		switch {
		case werr != nil:
			return errClientGone
		case errors.Is(rerr, io.EOF):
			return nil
		case rerr != nil && x.conn.isGone():
			return errClientGone
		case rerr != nil:
			return &unreachableError{x.srv.Engine, rerr}
		}
	}
}

// maxAnswer is the largest answer, in bytes, that is read into memory to filter
// it.
const maxAnswer = 256 << 20

// readText reads the Engine's whole answer.
func (x *exchange) readText(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, &unreachableError{x.srv.Engine, err}
	}
	return text, nil
}

// readAnswer reads the Engine's whole answer into v and returns its text.
func (x *exchange) readAnswer(resp *http.Response, v any) ([]byte, error) {
	text, err := x.readText(resp)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return nil, fmt.Errorf("the answer cannot be read: %w", err)
	}
	return text, nil
}

// reply answers with text in place of the Engine's body, and with the users' own
// paths in place of staged ones.
func (x *exchange) reply(resp *http.Response, text []byte) error {
	text = x.showBinds(text)
	resp.Header.Del("Content-Length")
	x.begin(resp, -1)
	_, _ = x.w.Write(text)
	return nil
}

// replyJSON answers with v in place of the Engine's body.
func (x *exchange) replyJSON(resp *http.Response, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("rebuild the answer: %w", err)
	}
	return x.reply(resp, append(text, '\n'))
}

// replayJSON reads the answer into v, calls then, and passes the Engine's own
// text on.
func (x *exchange) replayJSON(resp *http.Response, v any, then func()) error {
	text, err := x.readAnswer(resp, v)
	if err != nil {
		return err
	}
	then()
	return x.reply(resp, text)
}
