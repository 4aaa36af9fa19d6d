package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// The requests of the differential test: the seed makes them, and is printed
// where they show a difference.
const (
	classifySeed  = 20
	classifyCases = 5000
)

// A spelling is one generated request.
type spelling struct{ method, target string }

// A speller makes requests that two routers could read differently.
type speller struct {
	*rand.Rand
	ops []operation
}

func pick[T any](s speller, list []T) T { return list[s.IntN(len(list))] }

// References that exist nowhere. All have a capital letter: no registry is asked
// for an image that is called so.
var references = []string{
	"Nosuch", "NOSUCH-1", "Nosuch/json", "json/Nosuch", "Nosuch/attach/ws", "create/Nosuch", "Nosuch/checkpoints/c", "No.such", "No such", "Nosüch",
	"Nosuch:tag", "Nosuch@sha256:0", "A/B/C", "v1.41/Nosuch", "Nosuch/", "N%o", "N+o", "N;o", "N{o}", "N\"o", "N?o", "N#o", "..N", "N\u017f", "N\u212a",
}

var versions = []string{"", "", "", "/v1.41", "/v1.41", "/v1.41", "/v1.24", "/v1.40", "/v1.41.0", "/v01.41", "/v1.041"}

var oddVersions = []string{"/v1", "/v1.4", "/v1.51", "/v9.9", "/v.", "/v..", "/v1..41", "/v", "/v/", "/V1.41", "/v1.41x", "/vx", "/v1.41/v1.41", "/v-1", "/v1,41",
	"/v1.41/", "/v1.41/.", "//v1.41", "/v 1.41", "/version", "/v\u0661.41"}

var methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "Post", "PRI", "COPY"}

// next makes a request: a route of the Engine with references filled in, and in
// most cases bent in one or two ways.
func (s speller) next() spelling {
	for {
		op := pick(s, s.ops)
		path := variable.ReplaceAllStringFunc(op.template, func(string) string { return pick(s, references) })
		if s.IntN(10) == 0 {
			op.method = pick(s, methods)
		}
		for s.IntN(5) < 2 {
			path = s.bend(path)
		}
		prefix := pick(s, versions)
		if s.IntN(8) == 0 {
			prefix = pick(s, oddVersions)
		}
		target := s.escape(prefix + path)
		if !strings.HasPrefix(target, "/") || dials(path) {
			continue
		}
		if s.IntN(20) == 0 {
			target = pick(s, []string{"http://elsewhere", "http://elsewhere:1", "//elsewhere", "https://docker", "ftp://a:b@elsewhere", "x:"}) + target
		}
		return spelling{op.method, target}
	}
}

// dials reports whether the Engine could ask a registry about such a path.
func dials(path string) bool {
	return strings.Contains(path, "distribution") && strings.ToLower(path) == path
}

// bend changes a decoded path.
func (s speller) bend(path string) string {
	segments := strings.Split(path, "/")
	at := s.IntN(len(segments))
	words := strings.FieldsFunc(pick(s, s.ops).template, func(r rune) bool { return strings.ContainsRune("/{}:.*+", r) })
	switch s.IntN(12) {
	case 0:
		return path + "/"
	case 1:
		return path + "/" + pick(s, words)
	case 2:
		segments[at] += "/" + pick(s, []string{"", ".", "..", "../" + segments[at]})
	case 3:
		segments = append(segments[:at], segments[at+1:]...)
	case 4:
		segments[at] = pick(s, words)
	case 5:
		segments[at] = strings.ToUpper(segments[at])
	case 6:
		segments[at] += pick(s, []string{"\x00", "\n", " ", "\x7f", "\xff", ";x", ".", "..", "s", "%2f", "%25"})
	case 7:
		segments[at] = strings.NewReplacer("s", "\u017f", "k", "\u212a").Replace(segments[at])
	case 8:
		return "/" + pick(s, words) + "/" + pick(s, references) + "/" + pick(s, words)
	case 9:
		segments[at] = pick(s, references)
	}
	return strings.Join(segments, "/")
}

// escape writes a path as a request's target: what must be is encoded, and at
// random more than that, slashes and version among it.
func (s speller) escape(path string) string {
	odds := pick(s, []int{0, 0, 0, 3, 20, 100})
	slashes := s.IntN(8) == 0
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		plain := c > ' ' && c < 0x7f && !strings.ContainsRune(`"%?#`, rune(c))
		switch {
		case plain && (c == '/' && !slashes || s.IntN(100) >= odds):
			b.WriteByte(c)
		case s.IntN(2) == 0:
			fmt.Fprintf(&b, "%%%02x", c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// text is the request as it is sent.
func (c spelling) text() string {
	body := ""
	if c.method == "POST" || c.method == "PUT" {
		body = brokenJSON
	}
	return fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", c.method, c.target, probing, len(body), body)
}

// A line is a connection that is dialled again when an answer ends it.
type line struct {
	socket string
	conn   net.Conn
	br     *bufio.Reader
}

// send sends one request and reads its answer. Where the answer ends the
// connection, its end is awaited: the request is then over for the proxy too.
func (l *line) send(t *testing.T, c spelling) answer {
	t.Helper()
	if l.conn == nil {
		l.conn, l.br = open(t, l.socket, "")
	}
	if err := l.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(l.conn, c.text()); err != nil {
		t.Fatalf("%s %s: %v", c.method, c.target, err)
	}
	resp, err := http.ReadResponse(l.br, &http.Request{Method: c.method})
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, c.target, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, c.target, err)
	}
	if resp.Close {
		_, _ = io.Copy(io.Discard, l.br)
		l.conn.Close()
		l.conn = nil
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// A served is what became of a request on the Engine's own socket.
type served struct {
	spelling
	// malformed is true where no router sees the request.
	malformed bool
	// route is what served it, if anything did.
	route operation
	// forwarded is what the Engine then served to the proxy.
	forwarded []operation
}

// A witness finds out which route of the Engine serves a request.
type witness struct {
	model
	raw   *line
	log   *logReader
	known map[operation]string
}

// ask sends a request to the Engine's own socket and returns the route that served
// it: what the model of its router says, which the answer and the log must bear
// out.
func (w *witness) ask(t *testing.T, c spelling) *served {
	t.Helper()
	out := &served{spelling: c}
	got := w.raw.send(t, c)
	calls := w.log.calls(t)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(c.text())))
	if err != nil {
		if out.malformed = true; got.status != http.StatusBadRequest {
			t.Errorf("%s %s: %v, and the Engine answers %d", c.method, c.target, err, got.status)
		}
		return out
	}
	op, vars, moved := w.route(c.method, r.URL)
	out.route = op
	says := signature(got)
	switch routed := slices.Contains(calls, operation{c.method, c.target}); {
	case routed != (op != operation{}):
		t.Errorf("%s %s: the Engine logs %v, the model of it serves %v", c.method, c.target, calls, op)
	case moved && got.status != http.StatusMovedPermanently,
		!moved && !routed && (got.status != http.StatusNotFound || c.method != "HEAD" && !strings.Contains(says, "page not found")):
		t.Errorf("%s %s: the Engine answers %q, the model of it has no route", c.method, c.target, says)
	case !routed, strings.HasPrefix(says, "Bad Request client version"), c.method == "HEAD" && says == "Bad Request ":
		// Beside the first, the route is found and its handler not called.
	case !unusual(vars) && says != knownAs(w.known[op], vars):
		t.Errorf("%s %s: the Engine answers %q, %v would %q", c.method, c.target, says, op, knownAs(w.known[op], vars))
	}
	return out
}

// unusual reports whether routes have other words than usual about a reference: it
// is empty, has a control character, or could be an image's.
func unusual(vars map[string]string) bool {
	for key, v := range vars {
		if key != "version" && (strings.ToLower(v) == v || strings.ContainsFunc(v, unicode.IsControl)) {
			return true
		}
	}
	return false
}

// TestClassificationIsTheEngines sends thousands of spellings of the Engine's
// routes to its own socket and to alice's, and wants the row that the proxy
// recorded to be the route that the Engine served, or the request to be refused.
// Whatever the proxy forwards must be served by that same route.
func TestClassificationIsTheEngines(t *testing.T) {
	ops := registered(t)
	w := &witness{model: newModel(slices.Clone(ops)), raw: &line{socket: theEngine.Socket}, log: newLogReader(t)}
	// A profile takes half a minute.
	ops = slices.DeleteFunc(ops, func(op operation) bool { return strings.HasPrefix(op.template, "/debug/") })
	w.known = signatures(t, w.raw, ops)
	s := speller{rand.New(rand.NewPCG(classifySeed, 0)), ops}
	hers := &line{socket: theProxy.Socket(lab.Alice)}
	hers.send(t, spelling{"BEGIN", "/"})
	var sent []*served
	for range classifyCases {
		c := w.ask(t, s.next())
		w.log.calls(t)
		got := hers.send(t, c.spelling)
		c.forwarded = w.log.forwarded(t)
		if !c.malformed {
			sent = append(sent, c)
		} else if got.status != http.StatusBadRequest {
			t.Errorf("%s %s: malformed, and the proxy answers %d", c.method, c.target, got.status)
		}
	}
	hers.send(t, spelling{"END", "/"})
	recs := recordsBetween(t, "BEGIN", "END")
	if len(recs) != len(sent) {
		t.Fatalf("seed %d: %d records of %d requests", classifySeed, len(recs), len(sent))
	}
	same := make(map[operation]int)
	for i, c := range sent {
		if err := w.compare(c, recs[i]); err != nil {
			t.Errorf("seed %d: %s %s: %v", classifySeed, c.method, c.target, err)
		} else if recs[i].Route != "" && c.route.method != "" {
			same[c.route]++
		}
	}
	total := 0
	for _, n := range same {
		total += n
	}
	t.Logf("%d requests, %d of them classified as one of %d routes", len(sent), total, len(same))
	// The Engine's OPTIONS for every path is the one route that the proxy lacks.
	if total < len(sent)*2/5 || len(same) != len(ops)-1 {
		t.Errorf("of %d requests %d were classified, as %d of %d routes: the test has lost its bite", len(sent), total, len(same), len(ops))
	}
}

// compare returns what the proxy and the Engine disagree in.
func (w *witness) compare(c *served, r record) error {
	for _, f := range c.forwarded {
		op, _, _ := w.route(f.method, &url.URL{Path: f.template})
		// An archive of images is decided on while it is forwarded.
		refused := r.Verdict == "deny" && r.Route != "/images/load"
		if refused || op.method != r.Method || shape(op.template) != shape(r.Route) || len(c.forwarded) > 1 {
			return fmt.Errorf("recorded as %+v, and %v arrived, which the Engine serves as %v", r, c.forwarded, op)
		}
	}
	row := operation{c.method, shape(r.Route)}
	fallback := strings.HasSuffix(r.Route, "/{rest:.+}") || r.Route == "/containers/{ref}" || r.Route == ""
	switch theirs := (operation{c.route.method, shape(c.route.template)}); {
	case r.Method != c.method:
		return fmt.Errorf("the record is of another request: %+v", r)
	case r.Route == "" && r.Verdict == "deny":
		// Refused before anybody asked what it is.
	case strings.HasPrefix(r.Route, "/debug/"):
		if r.Status != http.StatusForbidden {
			return fmt.Errorf("answered %d: the Engine's insides are open", r.Status)
		}
	case c.route == operation{}:
		// Rows for what only other Engines register do no harm.
		if !fallback && w.registers(row) {
			return fmt.Errorf("the proxy sees %v, the Engine nothing", row)
		}
	case fallback || row != theirs:
		return fmt.Errorf("the proxy sees %v, the Engine %v", row, theirs)
	}
	return nil
}

// registers reports whether the Engine has a route of this shape.
func (w *witness) registers(row operation) bool {
	for op := range w.known {
		if op.method == row.method && shape(op.template) == row.template {
			return true
		}
	}
	return false
}

// A record is what the tests read of the proxy's audit record.
type record struct {
	Method, Route, Rule, Verdict string
	PID, Status                  int
}

// recordsBetween reads the audit records of this process's requests after the one
// with the method first and before the one with the method last, which it waits
// for.
func recordsBetween(t *testing.T, first, last string) []record {
	t.Helper()
	var out []record
	eventually(t, "audit record of "+last, func() bool {
		text, err := theProxy.Audit()
		if err != nil {
			t.Fatal(err)
		}
		for row := range strings.Lines(text) {
			var r record
			if !strings.HasSuffix(row, "\n") || json.Unmarshal([]byte(row), &r) != nil || r.PID != os.Getpid() {
				continue
			}
			switch r.Method {
			case first:
				out = nil
			case last:
				return true
			default:
				out = append(out, r)
			}
		}
		return false
	})
	return out
}
