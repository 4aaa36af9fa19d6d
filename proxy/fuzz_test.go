package proxy

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/gorilla/mux"

	"github.com/ds01/ds01-proxy/policy"
)

// engineMux is a router like the Engine's own: every route with and without a
// version, decoded paths, the name of the route as its answer.
func engineMux(t testing.TB, ops []operation) *mux.Router {
	t.Helper()
	m := mux.NewRouter()
	for _, op := range ops {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Route", op.method+" "+op.path) })
		m.Path("/v{version:[0-9.]+}" + op.path).Methods(op.method).Handler(h)
		m.Path(op.path).Methods(op.method).Handler(h)
	}
	return m
}

// A header catches what a handler says.
type catcher struct {
	header http.Header
	status int
}

func (c *catcher) Header() http.Header         { return c.header }
func (c *catcher) Write(p []byte) (int, error) { return len(p), nil }
func (c *catcher) WriteHeader(status int)      { c.status = status }

// routeOf asks the Engine's router.
func routeOf(m *mux.Router, method string, u *url.URL) string {
	c := &catcher{header: http.Header{}, status: 200}
	m.ServeHTTP(c, &http.Request{Method: method, URL: u, RequestURI: u.RequestURI(), Header: http.Header{}})
	if c.status != 200 {
		return ""
	}
	return c.header.Get("Route")
}

// FuzzClassify wants the proxy's row to be the route that the Engine would
// serve, or the request to be refused, for any method and target.
func FuzzClassify(f *testing.F) {
	for _, target := range []string{"/containers/json", "/v1.41/containers/abc/json", "/containers%2Fjson", "/containers/%6a%73on", "/networks/", "//x",
		"/containers/a/b/json", "/containers/json/json", "/images/a/b/c/history", "/v1.41/v1.41/info", "/containers/x/attach/ws", "/v/info", "/v./info",
		"/containers/create/json", "/exec/a/b/start", "/debug/pprof/x", "/containers/a\n/json", "/%63ontainers/x/stop", "/containers/prune/", "/volumes/a/b"} {
		for _, method := range []string{get, post, put, del, head} {
			f.Add(method, target)
		}
	}
	var ops []operation
	for i := range tableOnce {
		if row := &tableOnce[i]; row.method != anyMethod {
			ops = append(ops, operation{row.method, row.path})
		}
	}
	m := engineMux(f, ops)
	ro := newRouter(table())
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.HasPrefix(u.Path, "/debug") {
			return
		}
		r := &http.Request{Method: method, URL: u, ProtoMajor: 1, RequestURI: target}
		if checkTarget(r) != nil {
			return
		}
		theirs := routeOf(m, method, &url.URL{Path: u.Path, RawPath: u.RawPath})
		_, rest := splitVersion(u.Path)
		row, vars := ro.match(&http.Request{Method: method, URL: &url.URL{Path: rest}})
		ours := ""
		if !isFallback(row) {
			ours = row.method + " " + row.path
		}
		if ours != theirs {
			t.Errorf("%s %q: the proxy sees %q, the Engine %q", method, target, ours, theirs)
		}
		if theirs != "" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/" {
			t.Errorf("%q is not clean and was let through", target)
		}
		// A reference that is replaced must be where the Engine looks for it.
		if ref := vars["ref"]; ref != "" && strings.HasPrefix(rest, "/containers/") {
			id := strings.Repeat("a", 64)
			again, v := ro.match(&http.Request{Method: method, URL: &url.URL{Path: replaceReference(rest, "/containers/", ref, id)}})
			if again != row && !isFallback(row) || again != nil && v["ref"] != id {
				t.Errorf("%q with its reference %q replaced is another route", rest, ref)
			}
		}
	})
}

var tableOnce = table()

// FuzzFilters wants what is emitted to be, to the Engine's own decoder, what the
// client asked for and the owner's label.
func FuzzFilters(f *testing.F) {
	for _, s := range []string{`{}`, `null`, ``, `{"label":["a"]}`, `{"label":{"a":true}}`, `{"label":{"a":false}}`, `{"label":{}}`, `{"label":null}`,
		`{"label":["ds01.user=bob"]}`, `{"Label":["a"]}`, `{"name":["x"],"name":["y"]}`, `{"label":"a"}`, `[]`, `{"a":[1]}`, `{"label":{"a":true},"b":["c"]}`} {
		f.Add("filters=" + url.QueryEscape(s))
	}
	f.Add("filters=%7B%7D&filters=x")
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		x := &exchange{query: query, subject: &policy.Subject{User: "alice"}}
		theirs, theirErr := filters.FromJSON(query.Get("filters"))
		if v, err := filterOwn(x); err != nil || !v.Allowed() {
			if theirErr == nil {
				t.Fatalf("%q is refused and the Engine takes it: %v", raw, err)
			}
			return
		}
		if theirErr != nil {
			t.Fatalf("%q is forwarded and the Engine refuses it", raw)
		}
		if n := len(x.query["filters"]); n != 1 {
			t.Fatalf("%d filters parameters", n)
		}
		got, err := filters.FromJSON(x.query.Get("filters"))
		if err != nil {
			t.Fatal(err)
		}
		if !got.ExactMatch("label", "ds01.user=alice") || !got.Contains("label") {
			t.Fatalf("%q became %q without the owner", raw, x.query.Get("filters"))
		}
		for _, key := range theirs.Keys() {
			for _, v := range theirs.Get(key) {
				if !got.ExactMatch(key, v) {
					t.Fatalf("%q lost %s=%s", raw, key, v)
				}
			}
		}
		for _, key := range got.Keys() {
			for _, v := range got.Get(key) {
				if (key != "label" || v != "ds01.user=alice") && !contains(theirs.Get(key), v) {
					t.Fatalf("%q gained %s=%s", raw, key, v)
				}
			}
		}
	})
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// FuzzCreate wants what is forwarded to decode, with the Engine's own types, to
// what was decided: the owner's marks, and otherwise what the client's body
// decodes to.
func FuzzCreate(f *testing.F) {
	for _, s := range []string{
		`{"Image":"i"}`, `{"Image":"i","HostConfig":null}`, `{"Image":"i","Privileged":true}`, `{"image":"i","IMAGE":"j","hostconfig":{"CgroupParent":"/x"}}`,
		`{"Image":"i","HoſtConfig":{"cgroupparent":"/x"},"labelſ":{"ds01.user":"bob"}}`, `{"Labels":{"ds01.user":"bob"},"labels":{"a":"b"}}`,
		`{"Cmd":"a string","Entrypoint":["x"]}`, `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"1"}]},"Memory":-1,"PidsLimit":0}}`,
		`{"Config":{"Image":"i"}}`, `{"NetworkingConfig":{"EndpointsConfig":{"n":{"NetworkID":"x"}}}}`, `null`, `[]`, `{}`, `{"Image":"i"} x`,
	} {
		f.Add([]byte(s))
	}
	now := testTime
	f.Fuzz(func(t *testing.T, body []byte) {
		x := &exchange{body: body}
		var ours container.CreateRequest
		present, err := x.decode(&ours)
		var theirs container.CreateRequest
		dec := json.NewDecoder(strings.NewReader(string(body)))
		theirErr := dec.Decode(&theirs)
		if err == nil && present && theirErr != nil {
			t.Fatalf("the Engine does not take %q: %v", body, theirErr)
		}
		if err != nil || !present {
			return
		}
		policy.StampContainer(&ours, &policy.Subject{User: "alice"}, "/slice", now)
		if err := x.encode(&ours); err != nil {
			return
		}
		var arrived container.CreateRequest
		if err := json.Unmarshal(x.body, &arrived); err != nil {
			t.Fatalf("what is forwarded does not decode: %v", err)
		}
		if arrived.Labels["ds01.user"] != "alice" || arrived.HostConfig.CgroupParent != "/slice" {
			t.Fatalf("%q arrives as %q", body, x.body)
		}
		// But for the marks, nothing changed.
		policy.StampContainer(&theirs, &policy.Subject{User: "alice"}, "/slice", now)
		want, err := json.Marshal(&theirs)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != string(x.body) {
			t.Fatalf("%q arrives as\n%s, want\n%s", body, x.body, want)
		}
	})
}
