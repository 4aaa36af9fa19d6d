package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/mux"
)

// An operation is a route as the Engine registers it.
type operation struct{ method, template string }

var (
	// Engines before and since 28 word these differently.
	registering = regexp.MustCompile(`msg="Registering (?:route" method=)?([A-Z]+),? (?:path="?)?([^" \n]+)`)
	calling     = regexp.MustCompile(`msg="(?:Calling|handling [A-Z]+ request".* method=)(?: ?)([A-Z]+) (?:module=api request-url="?)?([^"? \n]+)`)
	versioned   = regexp.MustCompile(`^/v[0-9.]+/`)
	variable    = regexp.MustCompile(`\{[^}]*\}`)
)

// shape is a template without the names of its variables, which differ.
func shape(template string) string { return variable.ReplaceAllString(template, "{}") }

// registered reads the Engine's table out of its log: what it registered when it
// last started, in order.
func registered(t *testing.T) []operation {
	t.Helper()
	text, err := os.ReadFile(theEngine.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	last := string(text)[max(0, strings.LastIndex(string(text), `msg="Registering routers"`)):]
	var ops []operation
	for _, m := range registering.FindAllStringSubmatch(last, -1) {
		ops = append(ops, operation{m[1], m[2]})
	}
	if len(ops) < 100 {
		t.Fatalf("the Engine's log shows %d routes: it is not in debug mode, or words them differently", len(ops))
	}
	return ops
}

// A model is a router built as the Engine builds its own: every route with a
// version and without, in the order of registration.
type model struct{ *mux.Router }

func newModel(ops []operation) model {
	m := model{mux.NewRouter()}
	for _, op := range ops {
		for _, prefix := range []string{"/v{version:[0-9.]+}", ""} {
			m.Path(prefix + op.template).Methods(op.method).Name(prefix + " " + op.method + " " + op.template).HandlerFunc(http.NotFound)
		}
	}
	return m
}

// route returns what serves a request with this path, which may be nothing, and
// its variables. moved is true where the path is answered with a redirect.
func (m model) route(method string, u *url.URL) (op operation, vars map[string]string, moved bool) {
	// The router redirects by itself while it serves, and not while it matches.
	w := &statusWriter{header: http.Header{}}
	r := &http.Request{Method: method, URL: &url.URL{Path: u.Path, RawPath: u.RawPath}, Header: http.Header{}}
	if m.ServeHTTP(w, r); w.status == http.StatusMovedPermanently {
		return operation{}, nil, true
	}
	var found mux.RouteMatch
	if !m.Match(r, &found) || found.MatchErr != nil {
		return operation{}, nil, false
	}
	name := strings.Fields(found.Route.GetName())
	return operation{name[len(name)-2], name[len(name)-1]}, found.Vars, false
}

// A statusWriter keeps the status of an answer alone.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *statusWriter) WriteHeader(status int)      { w.status = status }

// A logReader reads what the Engine adds to its log.
type logReader struct {
	file *os.File
}

func newLogReader(t *testing.T) *logReader {
	t.Helper()
	f, err := os.Open(theEngine.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	return &logReader{f}
}

// calls returns the requests that the Engine has begun to serve since it was last
// asked: method and path, as they came.
func (l *logReader) calls(t *testing.T) []operation {
	t.Helper()
	text, err := io.ReadAll(l.file)
	if err != nil {
		t.Fatal(err)
	}
	var out []operation
	for _, m := range calling.FindAllStringSubmatch(string(text), -1) {
		out = append(out, operation{m[1], m[2]})
	}
	return out
}

// forwarded is calls without the proxy's own questions: those name no version, and
// what it forwards always does.
func (l *logReader) forwarded(t *testing.T) []operation {
	t.Helper()
	return slices.DeleteFunc(l.calls(t), func(call operation) bool { return !versioned.MatchString(call.template) })
}

// probing is a query that makes nearly every route stop at its parameters, each
// with words of its own, and none do anything.
const probing = "?filters=%7B&limit=zz&signal=zz&t=zz&h=zz&w=zz&condition=zz&until=zz"

// brokenJSON is a body that is refused wherever one is read.
const brokenJSON = "{"

// placeholder stands for every reference where routes are made known.
const placeholder = "Nosuch"

// signature is what an answer tells about the route that gave it: the status and
// the error's words.
func signature(got answer) string {
	var e struct{ Message string }
	if json.Unmarshal([]byte(got.body), &e) != nil || e.Message == "" {
		e.Message = string([]rune(strings.TrimSpace(got.body)))
	}
	if got.status < 300 {
		// Lists and figures: their beginning does not change.
		e.Message = e.Message[:min(len(e.Message), 12)]
	}
	// Which rule of references is broken is the reference's affair.
	e.Message, _, _ = strings.Cut(e.Message, "invalid reference format")
	return http.StatusText(got.status) + " " + strings.ReplaceAll(e.Message, `\"`, `"`)
}

// signatures asks for every route of the Engine, plainly, and returns what each
// is known by.
func signatures(t *testing.T, l *line, ops []operation) map[operation]string {
	t.Helper()
	known := make(map[operation]string)
	for _, op := range ops {
		path := variable.ReplaceAllString(op.template, placeholder)
		known[op] = signature(l.send(t, spelling{op.method, "/v1.41" + path}))
	}
	return known
}

// knownAs is what a route that is known by words answers about the reference in
// vars.
func knownAs(words string, vars map[string]string) string {
	for key, value := range vars {
		if key != "version" {
			// JSON has no other bytes.
			words = strings.ReplaceAll(words, placeholder, string([]rune(value)))
		}
	}
	return words
}
