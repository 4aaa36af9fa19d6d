package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// outgoing is a request as the Engine will read it.
type outgoing struct {
	target string
	header http.Header
	// body and length are the body; length -1 means chunked, 0 none.
	body   io.Reader
	length int64
	// upgrade is true where the client's wish to upgrade is passed on and an
	// agreement of the Engine becomes a tunnel.
	upgrade bool
	// plain is true where the client's wishes for a form of the answer are not
	// passed on.
	plain bool
	// conflict words the Engine's 409 anew; nil passes it on.
	conflict answer
	// unframed is true where the client's framing headers are passed on and the
	// bytes after them belong to the tunnel.
	unframed bool
}

// outgoing rebuilds the request from what was parsed and decided.
func (x *exchange) outgoing() *outgoing {
	u := url.URL{Path: "/v" + x.version + x.path}
	if len(x.query) > 0 {
		u.RawQuery = x.query.Encode()
	}
	out := &outgoing{target: u.RequestURI(), header: x.r.Header, upgrade: x.row.tunnel, conflict: x.row.conflict}
	// The proxy reads the answer and knows one form of it.
	out.plain = x.row.answer != nil
	switch {
	case x.stream != nil:
		out.body, out.length = x.stream, -1
	case x.rebuilt:
		out.body, out.length = bytes.NewReader(x.body), int64(len(x.body))
	case x.row.body == bodyStream:
		out.body, out.length = x.r.Body, x.r.ContentLength
	case x.row.tunnel && (x.r.Header.Get("Upgrade") != "" || isAttach(x.r)):
		out.unframed = true
	case x.row.tunnel:
		// No tunnel will come of it, and the Engine awaits the body before it says so.
		out.body, out.length = x.r.Body, x.r.ContentLength
	}
	return out
}

// relay forwards the client's own request.
func (x *exchange) relay() error {
	// Nobody looks at which volumes this gives to containers.
	x.srv.volumes.of(x.subject.User).forget()
	out := &outgoing{target: x.r.RequestURI, header: x.r.Header, upgrade: true,
		body: x.r.Body, length: x.r.ContentLength}
	if !strings.HasPrefix(out.target, "/") {
		// Absolute form: the Engine reads the path of it.
		u, err := url.Parse(out.target)
		if err != nil {
			return badRequest("the request's target cannot be parsed: %v", err)
		}
		out.target = u.RequestURI()
	}
	if x.r.ContentLength != 0 && x.r.Header.Get("Upgrade") == "" && isAttach(x.r) {
		out.unframed, out.body, out.length = true, nil, 0
	}
	if x.read != nil {
		// Part of the body was read to check it.
		out.body = io.MultiReader(bytes.NewReader(x.read), x.r.Body)
		if x.row.stamp != nil {
			if body, ok := x.row.stamp(x); ok {
				out.body, out.length = bytes.NewReader(body), int64(len(body))
			}
		}
	}
	return x.forward(out, nil)
}

// hopByHop are the headers that speak of one connection: RFC 9110, 7.6.1.
var hopByHop = [...]string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length", "Host",
}

func isHopByHop(key string) bool {
	for _, h := range hopByHop {
		if key == h {
			return true
		}
	}
	return false
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}

// forward sends out to the Engine on the client's own upstream connection and
// answers with what comes back, through answer or as it is.
func (x *exchange) forward(out *outgoing, answer answer) error {
	upgrade := ""
	if out.upgrade {
		upgrade = x.r.Header.Get("Upgrade")
	}
	// With an upgrade, what the client sends from here on may be the tunnel's.
	up, err := x.conn.takeUpstream(upgrade != "", x.stays())
	if err != nil {
		return err
	}
	keep := false
	defer func() { x.conn.putUpstream(up, keep) }()
	x.forwarded = true
	if err := writeHeader(up, x.r, out, upgrade); err != nil {
		return &unreachableError{x.srv.Engine, err}
	}
	sending, err := x.sendBody(up, out)
	if err != nil {
		return err
	}
	resp, err := readResponse(up.br, x.r)
	if err != nil {
		if sending != nil {
			up.Close()
			var refused *refusedBody
			if errors.As(<-sending, &refused) {
				return x.refuseBody(refused)
			}
		}
		if x.conn.isGone() {
			return errClientGone
		}
		return &unreachableError{x.srv.Engine, noEOF(err)}
	}
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols && upgrade == "":
		return &unreachableError{x.srv.Engine, errors.New("it switched protocols unasked")}
	case resp.StatusCode == http.StatusSwitchingProtocols, out.upgrade && isRawStream(resp):
		x.answered(resp.StatusCode)
		if sending != nil {
			// The Engine has read the body, or does not mean to.
			x.awaitSender(up, resp, sending)
		}
		return x.tunnel(up, resp)
	}
	x.answered(resp.StatusCode)
	if sending != nil {
		// The server must not read the body behind the sender's back.
		_ = http.NewResponseController(x.w).EnableFullDuplex()
		if !sentAlready(sending) {
			// The Engine answers before it has read everything. What is left of the
			// body must never be read as the next request.
			x.w.Header().Set("Connection", "close")
		}
	}
	if resp.Close {
		x.w.Header().Set("Connection", "close")
	}
	if out.unframed && x.r.ContentLength != 0 {
		// The bytes that were meant for a tunnel are nobody's now.
		x.w.Header().Set("Connection", "close")
	}
	if x.row != nil && x.row.done != nil && resp.StatusCode/100 == 2 {
		x.row.done(x)
	}
	switch {
	case resp.StatusCode == http.StatusConflict && out.conflict != nil:
		err = out.conflict(x, up, resp)
	case answer == nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated:
		err = x.pass(up, resp)
	default:
		err = answer(x, up, resp)
	}
	if err != nil {
		up.Close()
		if sending != nil {
			<-sending
		}
		return err
	}
	x.whole = true
	whole := true
	if sending != nil {
		// A client that waits for the answer before it sends on must get it.
		if err := http.NewResponseController(x.w).Flush(); err != nil {
			up.Close()
		}
		whole = x.awaitSender(up, resp, sending)
	}
	keep = whole && !resp.Close && !out.unframed
	return nil
}

// writeHeader writes the request line and the headers.
func writeHeader(up *upstream, r *http.Request, out *outgoing, upgrade string) error {
	w, ok := writers.Get().(*bufio.Writer)
	if !ok {
		w = bufio.NewWriterSize(nil, 4<<10)
	}
	w.Reset(up)
	defer func() {
		w.Reset(nil)
		writers.Put(w)
	}()
	line := func(parts ...string) {
		for _, p := range parts {
			_, _ = w.WriteString(p)
		}
		_, _ = w.WriteString("\r\n")
	}
	line(r.Method, " ", out.target, " HTTP/1.1")
	line("Host: docker")
	named := namedIn(r.Header["Connection"])
	for key, values := range out.header {
		if isHopByHop(key) || named[key] ||
			out.plain && (key == "Accept" || key == "Accept-Encoding") {
			continue
		}
		for _, v := range values {
			line(key, ": ", v)
		}
	}
	if upgrade != "" {
		line("Connection: Upgrade")
		line("Upgrade: ", upgrade)
	}
	switch {
	case out.unframed && r.ContentLength > 0:
		line("Content-Length: ", strconv.FormatInt(r.ContentLength, 10))
	case out.unframed && r.ContentLength < 0, out.length < 0:
		line("Transfer-Encoding: chunked")
	case out.length > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut:
		line("Content-Length: ", strconv.FormatInt(out.length, 10))
	}
	_, _ = w.WriteString("\r\n")
	// A small body that is in memory already travels with the header.
	if b, ok := out.body.(*bytes.Reader); ok && out.length <= int64(w.Available()) {
		_, _ = b.WriteTo(w)
	}
	return w.Flush()
}

// namedIn returns the header keys that the Connection header names.
func namedIn(connection []string) map[string]bool {
	if len(connection) == 0 {
		return nil
	}
	named := make(map[string]bool)
	for _, v := range connection {
		for name := range strings.SplitSeq(v, ",") {
			named[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	return named
}

// readResponse reads the Engine's answer, past informational ones.
func readResponse(br *bufio.Reader, r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(br, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

// isRawStream reports whether a 200 is the beginning of a hijacked connection:
// the Engine gives it neither a length nor chunks, and says what it is.
func isRawStream(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 &&
		strings.HasPrefix(resp.Header.Get("Content-Type"), "application/vnd.docker.raw-stream")
}

// isAttach reports whether an unchecked request would be hijacked without an
// upgrade; the bytes after its header are then not a body.
func isAttach(r *http.Request) bool {
	_, path := splitVersion(r.URL.Path)
	return r.Method == http.MethodPost && strings.HasPrefix(path, "/containers/") && strings.HasSuffix(path, "/attach")
}

// noEOF words the end of a connection that should have carried an answer.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it closed the connection without an answer")
	}
	return err
}
