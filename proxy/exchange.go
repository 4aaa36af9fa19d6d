package proxy

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

// An exchange is one request and its answer.
type exchange struct {
	srv     *Server
	conn    *conn
	w       http.ResponseWriter
	r       *http.Request
	subject *policy.Subject

	// row is the route, or nil where none matches; vars are its variables.
	row  *route
	vars map[string]string
	// version is the API version of the request, or the pinned one.
	version string
	// highest is the highest API version that is offered to clients.
	highest string
	// path is the decoded path without a version; guards write full IDs into it.
	path string
	// query is the parsed query; guards rewrite it.
	query url.Values
	// body replaces the client's body where rebuilt is true.
	body    []byte
	rebuilt bool
	// ownOnly is true where the answer's list is to be filtered by owner; limit is
	// how many of it the client wants, 0 all.
	ownOnly bool
	limit   int
	// local, where set, is the answer to a request that is not forwarded.
	local []byte
	// buffered is how much of the user's share of memory the body takes.
	buffered int64
	// read is what was read of the client's body to decide, for a mode that
	// forwards the client's own.
	read []byte
	// verdict of the guard.
	verdict policy.Verdict
	// finish, if set, is called once the Engine has answered, before the client
	// reads it, and with ok false where the Engine refused or never answered.
	finish func(ok bool)
	// release, if set, gives back a lock once the Engine has answered.
	release func()
	// volumeHold is what the exchange does with volumes, until the Engine has answered.
	volumeHold *volumeHold
	// mark tells in the answer whether this request made a volume.
	mark string
	// ends are called when the exchange is over, the last one first.
	ends []func()
	// stream, where set, is forwarded in place of the client's body.
	stream io.Reader
	// made are the images that the Engine says this request made, loaded the names
	// that it says it loaded, before the images that there were.
	made, loaded []string
	before       map[string]bool
	// runs is the image that a container is made of, staged the binds that it gets.
	// from are the containers that it takes mounts from, and given is true once the
	// binds are its own.
	runs   engine.ImageConfig
	staged []string
	from   []string
	given  bool
	// hold is what was promised to the request of what its user may have, and holding what
	// the container that it makes holds.
	hold    *quota.Hold
	holding quota.Container
	granted []string
	// awaited is true where the Engine's answer is awaited even if the client leaves.
	awaited bool
	// oneself is true where the container must be its user and nobody else.
	oneself bool
	// inherited are the binds of those.
	inherited []string
	// warnings go into the answer to a container's creation.
	warnings []string
	// images are all that the Engine has, where a guard asked for them.
	images engine.ImageList

	// forwarded is true once the Engine may have the request.
	forwarded bool
	// whole is true once the Engine's answer has been read to its end.
	whole       bool
	wroteHeader bool
	// also are causes to fail open beside the verdict's.
	also     []audit.Cause
	recorded bool
	rec      audit.Record
}

// ServeHTTP answers one request: accept, classify, guard, rewrite, forward,
// answer, record.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		writeError(w, http.StatusInternalServerError, "the connection is not known")
		return
	}
	x := &exchange{srv: s, conn: c, w: w, r: r}
	x.rec = audit.Record{Began: s.Now(), Method: r.Method, Verdict: audit.VerdictError}
	defer x.record()
	defer x.recover()
	if err := x.serve(); err != nil {
		x.fail(err)
	}
}

// serve answers, or returns what keeps it from answering.
func (x *exchange) serve() error {
	var err error
	if x.subject, err = x.conn.identify(x.r.Context()); passing(err) {
		// The next connection may fare better.
		x.w.Header().Set("Connection", "close")
		return &statusError{http.StatusServiceUnavailable, "cannot tell who you are for the moment; try again: " + err.Error()}
	} else if err != nil {
		x.refuse(policy.Verdict{Rule: "identify", Reason: "Permission denied: " + err.Error()})
		return nil
	}
	if (x.subject.Admin || x.subject.Mode == policy.ModeDisabled) && !isOwn(x.r) {
		x.verdict = policy.Verdict{Outcome: policy.Allow, Rule: "relay"}
		x.decided()
		return x.relay()
	}
	err = x.check()
	if x.subject.Mode == policy.ModeMonitoring && !isOwn(x.r) {
		return x.monitor(err)
	}
	if err != nil {
		return err
	}
	if !x.verdict.Allowed() {
		x.refuse(x.verdict)
		return nil
	}
	x.decided()
	if x.local != nil {
		x.answered(http.StatusOK)
		x.w.Header().Set("Content-Type", "application/json")
		x.wroteHeader = true
		_, _ = x.w.Write(x.local)
		return nil
	}
	return x.forward(x.outgoing(), x.row.answer)
}

// check classifies the request and asks its guard. An error means that the
// request cannot be decided: it is malformed, or the Engine does not answer.
func (x *exchange) check() error {
	if err := checkTarget(x.r); err != nil {
		return err
	}
	x.version, x.path = splitVersion(x.r.URL.Path)
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return err
	}
	x.highest = pinned(st.APIVersion)
	if err := checkVersion(x.version, x.highest); err != nil {
		return err
	}
	if x.version == "" {
		x.version = x.highest
	}
	// The rest of the way sees the path without the version and nothing else.
	x.r.URL.Path, x.r.URL.RawPath = x.path, ""
	if x.row, x.vars = x.srv.routes.match(x.r); x.row == nil {
		x.row = &unknown
	}
	x.rec.Route = x.row.path
	if x.query, err = parseQuery(x.r.URL.RawQuery); err != nil {
		return err
	}
	if err := x.takeBody(); err != nil {
		return err
	}
	x.verdict, err = x.row.guard(x)
	return err
}

// monitor lets the client's own request through, whatever check came to, and
// records what would have become of it.
func (x *exchange) monitor(err error) error {
	would := ""
	switch {
	case err != nil:
		_, would = x.srv.answerOf(err)
		x.rec.Rule = "bad-request"
	case !x.verdict.Allowed():
		would = x.verdict.Message()
		x.rec.Rule = x.verdict.Rule
	default:
		x.decided()
	}
	if would != "" {
		x.rec.Reason = would
		x.rec.Verdict = audit.VerdictWouldDeny
	}
	return x.relay()
}

// refuse answers 403 and forwards nothing.
func (x *exchange) refuse(v policy.Verdict) {
	x.rec.Rule, x.rec.Verdict, x.rec.Reason = v.Rule, audit.VerdictDeny, v.Message()
	x.writeError(http.StatusForbidden, v.Message())
}

// fail answers with what err says.
func (x *exchange) fail(err error) {
	if errors.Is(err, errClientGone) {
		// What was decided stands: the Engine may have done it.
		x.rec.Reason = strings.TrimPrefix(x.rec.Reason+"; "+err.Error(), "; ")
		return
	}
	status, message := x.srv.answerOf(err)
	if x.wroteHeader {
		// The answer has begun; cutting it is the only way to say that it is not
		// whole.
		x.rec.Reason = message
		panic(http.ErrAbortHandler)
	}
	if x.rec.Verdict = audit.VerdictError; status < http.StatusInternalServerError {
		x.rec.Verdict = audit.VerdictDeny
	}
	if x.rec.Rule == "" {
		x.rec.Rule = "bad-request"
		if status >= http.StatusInternalServerError {
			x.rec.Rule = "engine"
		}
	}
	x.rec.Reason = message
	x.writeError(status, message)
}

func (x *exchange) writeError(status int, message string) {
	x.wroteHeader = true
	x.rec.Status = status
	writeError(x.w, status, message)
}

// recover turns a panic into this request's 500 and nobody else's.
func (x *exchange) recover() {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		x.record()
		panic(http.ErrAbortHandler)
	}
	x.srv.Recorder.Panic(x.rec.Route, v, debug.Stack())
	x.rec.Verdict, x.rec.Rule, x.rec.Reason = audit.VerdictError, "panic", "the proxy failed; its log has the stack"
	if x.wroteHeader {
		x.record()
		panic(http.ErrAbortHandler)
	}
	x.w.Header().Set("Connection", "close")
	x.writeError(http.StatusInternalServerError, "the proxy failed while answering this request; its log tells your admin why")
}

// record writes the audit record, once.
func (x *exchange) record() {
	if x.recorded {
		return
	}
	x.recorded = true
	if x.finish != nil {
		// Without an answer, what was forwarded may have been done.
		x.finish(x.forwarded)
	}
	x.letGo()
	for i := len(x.ends) - 1; i >= 0; i-- {
		x.ends[i]()
	}
	if x.buffered > 0 {
		x.srv.buffered.give(x.subject.User, x.buffered)
	}
	if x.subject != nil {
		x.rec.User, x.rec.Admin, x.rec.Mode = x.subject.User, x.subject.Admin, x.subject.Mode.String()
	}
	x.rec.UID, x.rec.PID, x.rec.Container = x.conn.peer.UID, x.conn.peer.PID, x.conn.peer.ContainerID
	x.rec.Took = x.srv.Now().Sub(x.rec.Began)
	x.srv.Recorder.Record(&x.rec)
}

// decided records that a request is let through, before anything of it leaves: a
// client that goes away does not take the record with it.
func (x *exchange) decided() {
	x.rec.Verdict, x.rec.Rule, x.rec.Reason = audit.VerdictAllow, x.verdict.Rule, x.verdict.Reason
	if x.verdict.Outcome == policy.FailOpen {
		x.rec.Verdict = audit.VerdictFailOpen
		x.rec.FailOpen, x.rec.Also = x.verdict.Rule, x.also
	}
}

// opened is what stands of two verdicts that let a request through; failing open for one
// reason does not hide that it does for another.
func (x *exchange) opened(first, then policy.Verdict) policy.Verdict {
	if then.Outcome != policy.FailOpen {
		return first
	}
	known := slices.ContainsFunc(x.also, func(c audit.Cause) bool { return c.Rule == first.Rule })
	if first.Outcome == policy.FailOpen && first.Rule != then.Rule && !known {
		x.also = append(x.also, audit.Cause{Rule: first.Rule, Reason: first.Reason})
	}
	return then
}

// answered says that the Engine has answered with status.
func (x *exchange) answered(status int) {
	x.rec.Status = status
	if x.finish != nil {
		finish := x.finish
		x.finish = nil
		finish(status >= 200 && status < 300)
	}
	x.letGo()
}

// atEnd has f called when the exchange is over.
func (x *exchange) atEnd(f func()) { x.ends = append(x.ends, f) }

func (x *exchange) letGo() {
	if x.release != nil {
		x.release()
		x.release = nil
	}
}
