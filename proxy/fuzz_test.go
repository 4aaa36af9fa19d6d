package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
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

// routeOf asks the Engine's router; the answer is empty where it has no route.
func routeOf(m *mux.Router, method string, u *url.URL) operation {
	c := &catcher{header: http.Header{}, status: 200}
	m.ServeHTTP(c, &http.Request{Method: method, URL: u, RequestURI: u.RequestURI(), Header: http.Header{}})
	verb, template, ok := strings.Cut(c.header.Get("Route"), " ")
	if c.status != 200 || !ok {
		return operation{}
	}
	return operation{verb, shape(template)}
}

// oldEngine are the routes that Engine 20.10 registers, in its order: what it logs
// in debug mode when it starts.
func oldEngine(t testing.TB) []operation {
	t.Helper()
	text, err := os.ReadFile("testdata/routes-20.10.txt")
	if err != nil {
		t.Fatal(err)
	}
	var ops []operation
	for line := range strings.Lines(string(text)) {
		method, template, _ := strings.Cut(strings.TrimSpace(line), ", ")
		ops = append(ops, operation{method, template})
	}
	if len(ops) < 105 {
		t.Fatalf("only %d routes", len(ops))
	}
	return ops
}

// FuzzClassify wants the proxy's row to be the route that an Engine would serve,
// an old one and a new one, or the request to be refused, for any method and target.
func FuzzClassify(f *testing.F) {
	engines := [][]operation{oldEngine(f), registered(f)}
	var models []*mux.Router
	has := make([]map[operation]bool, len(engines))
	deep := regexp.MustCompile(`\{[^}]*\}`)
	for i, ops := range engines {
		for _, op := range ops {
			f.Add(op.method, "/v1.41"+example(op.path))
			f.Add(op.method, deep.ReplaceAllString(op.path, "a/b"))
		}
		models = append(models, engineMux(f, ops))
		has[i] = make(map[operation]bool)
		for _, op := range ops {
			has[i][operation{op.method, shape(op.path)}] = true
		}
	}
	ro := newRouter(table())
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.HasPrefix(u.Path, "/debug") {
			return
		}
		if checkTarget(&http.Request{Method: method, URL: u, ProtoMajor: 1, RequestURI: target}) != nil {
			return
		}
		version, rest := splitVersion(u.Path)
		row, vars := ro.match(&http.Request{Method: method, URL: &url.URL{Path: rest}})
		if row != nil && strings.HasPrefix(row.path, "/debug/") {
			return
		}
		var ours operation
		if !isFallback(row) {
			ours = operation{row.method, shape(row.path)}
		}
		for i, m := range models {
			// The Engine refuses a version that is none before it calls the handler.
			theirs := routeOf(m, method, &url.URL{Path: u.Path, RawPath: u.RawPath})
			if theirs != ours && (theirs != operation{} || has[i][ours]) {
				t.Errorf("%s %q (version %q): the proxy sees %v, the Engine %v", method, target, version, ours, theirs)
			}
		}
		if row != nil && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/" {
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

// FuzzFilters wants what is emitted to be, to the Engine's own decoder, what the
// client asked for and the owner's label.
func FuzzFilters(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		before := maps.Clone(query)
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
		for key, values := range before {
			if key != "filters" && !slices.Equal(values, x.query[key]) {
				t.Fatalf("%s became %q", key, x.query[key])
			}
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
				if (key != "label" || v != "ds01.user=alice") && !slices.Contains(theirs.Get(key), v) {
					t.Fatalf("%q gained %s=%s", raw, key, v)
				}
			}
		}
	})
}

// FuzzCreate wants what is forwarded to decode, as Engines old and new do it, to
// what was decided: the owner's marks, every reference the ID that was resolved, and
// otherwise what the client's body decodes to.
func FuzzCreate(f *testing.F) {
	alice := &policy.Subject{User: "alice"}
	f.Fuzz(func(t *testing.T, body []byte) {
		x := &exchange{body: body}
		var req container.CreateRequest
		present, err := x.decode(&req)
		want, theirErr := decodedOnce(string(body))
		if err == nil && present && req.Config != nil && theirErr != nil {
			t.Fatalf("%q is taken: %v", body, theirErr)
		}
		if err != nil || !present || req.Config == nil {
			if theirErr == nil {
				t.Fatalf("%q is refused and the Engine takes it: %v", body, err)
			}
			return
		}
		for _, r := range []*container.CreateRequest{&req, want} {
			resolveAll(r)
		}
		if req.HostConfig == nil {
			req.HostConfig = &container.HostConfig{}
		}
		policy.LabelVolumes(&req, alice, declaredBy(&req), inheritedBy(&req))
		policy.StampContainer(&req, alice, "/ds01.slice/ds01-student.slice/ds01-student-alice.slice", testTime, nil)
		if err := x.encode(&req); err != nil {
			return
		}
		if err := compareCreate(want, string(x.body)); err != nil {
			t.Fatalf("%q arrives as %q: %v", body, x.body, err)
		}
		if stray := strayReferences(t, x.body); len(stray) > 0 {
			t.Fatalf("%q arrives as %q, with references to %q", body, x.body, stray)
		}
	})
}

// strayReferences lists what a body refers to beside alice's container: whatever
// says container:, and all volumes-from and links.
func strayReferences(t *testing.T, body []byte) []string {
	t.Helper()
	var req struct{ HostConfig map[string]any }
	if err := json.Unmarshal(body, &req); err != nil {
		t.Fatal(err)
	}
	var stray []string
	for key, value := range req.HostConfig {
		if ref, ok := value.(string); ok && strings.HasPrefix(ref, "container:") && ref != "container:"+aliceID {
			stray = append(stray, key+"="+ref)
		}
		list, ok := value.([]any)
		for _, one := range list {
			if ref, _, _ := strings.Cut(fmt.Sprint(one), ":"); ok && (key == "VolumesFrom" || key == "Links") && ref != aliceID {
				stray = append(stray, fmt.Sprint(key, "=", one))
			}
		}
	}
	return stray
}

// resolveAll writes one ID in the place of every reference.
func resolveAll(req *container.CreateRequest) {
	for _, ref := range append(policy.ContainerReferences(req), policy.NetworkReferences(req)...) {
		ref.Set(aliceID)
	}
}
