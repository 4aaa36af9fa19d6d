package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/ds01/ds01-proxy/policy"
)

// maxJSON is the largest JSON body, in bytes, that is read to decide on it. The
// Engine has no limit of its own.
const maxJSON = 4 << 20

// maxForwarded is the largest JSON body, in bytes, that is forwarded: what was
// decoded is written out in full, with every key.
const maxForwarded = 2 * maxJSON

// bodyTimeout is how long a client may take to send a body that is decided on.
const bodyTimeout = time.Minute

// A bodyKind says what a route does with the client's body.
type bodyKind uint8

const (
	// bodyNone forwards no body; what the client sends is not read.
	bodyNone bodyKind = iota
	// bodyJSON is decoded and forwarded as its re-encoding.
	bodyJSON
	// bodyChecked is JSON that no decision looks into yet: it is read whole,
	// must be one JSON value, and is forwarded as it is.
	bodyChecked
	// bodyStream is forwarded as it comes: tar streams.
	bodyStream
)

// takeBody reads the body where the route decides on it, and refuses forms,
// which override the query where the Engine parses them.
func (x *exchange) takeBody() error {
	if x.row.tunnel && x.row.body == bodyNone {
		// Bytes after the header are the tunnel's, whatever frames them.
		return refuseForm(x.r.Header)
	}
	if err := refuseForm(x.r.Header); err != nil {
		return err
	}
	switch x.row.body {
	case bodyJSON, bodyChecked:
	default:
		return nil
	}
	if x.r.ContentLength > maxJSON {
		return x.tooLarge()
	}
	share := x.r.ContentLength
	if share < 0 {
		share = maxJSON
	}
	if !x.srv.buffered.take(x.subject.User, share) {
		x.takeIn()
		return &statusError{http.StatusTooManyRequests, "too many of your requests are being read at once; send them one after another"}
	}
	x.buffered = share
	_ = x.conn.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(io.LimitReader(x.r.Body, maxJSON+1))
	_ = x.conn.SetReadDeadline(time.Time{})
	x.read = body
	if err != nil {
		return badRequest("the request's body cannot be read: %v", err)
	}
	if len(body) > maxJSON {
		return x.tooLarge()
	}
	if tooManyTokens(body) {
		return &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's JSON has more than %d values; make it smaller", maxTokens)}
	}
	x.rebuilt = true
	x.body = body
	if x.row.body == bodyChecked && len(bytes.TrimSpace(body)) > 0 && !json.Valid(body) {
		return badRequest("the request's body is not one JSON value")
	}
	return nil
}

// patience is how much of a body that is too large, in bytes, is still taken
// in: most clients read the answer only when they have sent everything.
const patience = 16 << 20

func (x *exchange) tooLarge() error {
	x.takeIn()
	return &http.MaxBytesError{Limit: maxJSON}
}

// takeIn reads a body that is refused, where it is not forwarded all the same.
func (x *exchange) takeIn() {
	if x.subject.Mode == policy.ModeFull {
		_, _ = io.CopyN(io.Discard, x.r.Body, patience)
	}
}

// refuseForm refuses bodies that the Engine would parse as part of the query.
func refuseForm(h http.Header) error {
	for _, value := range h["Content-Type"] {
		kind, _, err := mime.ParseMediaType(value)
		if err != nil && kind == "" {
			continue
		}
		if kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data" {
			return &statusError{http.StatusUnsupportedMediaType, "form bodies are not part of the Docker API; send JSON, and parameters in the query"}
		}
	}
	return nil
}

// decode reads the body into v with the decoder that the Engine uses. An empty
// body leaves v as it is and reports false.
func (x *exchange) decode(v any) (present bool, err error) {
	dec := json.NewDecoder(bytes.NewReader(x.body))
	switch err := dec.Decode(v); {
	case errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, badRequest("the request's JSON cannot be read: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return false, badRequest("the request's JSON is followed by something else")
	}
	return true, nil
}

// encode makes v the body that is forwarded.
func (x *exchange) encode(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return badRequest("the request's JSON cannot be rebuilt: %v", err)
	}
	if len(body) > maxForwarded {
		return &statusError{http.StatusRequestEntityTooLarge, "the request becomes too large when it is written out; make it smaller"}
	}
	x.body = body
	return nil
}

// rewrite decodes the body into T and forwards its re-encoding. An empty body
// stays empty.
func rewrite[T any](x *exchange) (v T, present bool, err error) {
	present, err = x.decode(&v)
	if err != nil || !present {
		x.body = nil
		return v, present, err
	}
	return v, true, x.encode(&v)
}
