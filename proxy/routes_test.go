package proxy

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// dockerModule is the source of github.com/docker/docker at the version that
// the proxy's types come from.
func dockerModule(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/docker/docker").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// An operation is a method and a path template.
type operation struct{ method, path string }

// registered reads the routes out of the Engine's own routers.
func registered(t testing.TB) []operation {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dockerModule(t), "api/server/router/*/*.go"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d router files: %v", len(files), err)
	}
	call := regexp.MustCompile(`router\.New(Get|Post|Put|Delete|Head|Options)Route\("([^"]+)"`)
	var ops []operation
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			ops = append(ops, operation{strings.ToUpper(m[1]), m[2]})
		}
	}
	if len(ops) < 105 {
		t.Fatalf("only %d routes found: the source looks different", len(ops))
	}
	return ops
}

// described reads the operations out of the API description.
func described(t *testing.T) []operation {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dockerModule(t), "api/swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]yaml.Node
		Info  struct{ Version string }
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Info.Version != maxVersion {
		t.Fatalf("the description is of API %s, the types of %s", doc.Info.Version, maxVersion)
	}
	var ops []operation
	for path, methods := range doc.Paths {
		for method := range methods {
			ops = append(ops, operation{strings.ToUpper(method), path})
		}
	}
	if len(ops) != 107 {
		t.Fatalf("%d operations described, want 107", len(ops))
	}
	return ops
}

// example fills a template's variables: /containers/{name:.*}/json.
func example(template string) string {
	return regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(template, "x")
}

// isFallback reports whether a row is for what no other row knows.
func isFallback(row *route) bool {
	return row == nil || row.method == anyMethod && row.path != "/debug/{rest:.*}"
}

// TestI7EveryRouteHasARow compares the table with the Engine's own description
// and source, with and without a version, and fails on a missing row.
func TestI7EveryRouteHasARow(t *testing.T) {
	ro := newRouter(table())
	used := make(map[*route]bool)
	for _, op := range append(registered(t), described(t)...) {
		if op.method == http.MethodOptions {
			// Answered for any path; the proxy knows no such method.
			continue
		}
		for _, prefix := range []string{"", "/v1.24", "/v1.51"} {
			r := &http.Request{Method: op.method, URL: &url.URL{Path: prefix + example(op.path)}}
			if err := checkTarget(&http.Request{Method: op.method, URL: r.URL, ProtoMajor: 1}); err != nil {
				t.Errorf("%s %s is refused: %v", op.method, op.path, err)
			}
			_, r.URL.Path = splitVersion(r.URL.Path)
			row, _ := ro.match(r)
			if isFallback(row) {
				t.Errorf("%s %s has no row", op.method, op.path)
				continue
			}
			used[row] = true
			if shape(row.path) != shape(op.path) {
				t.Errorf("%s %s is matched by the row %s", op.method, op.path, row.path)
			}
		}
	}
	var unused []string
	for i := range ro.table {
		if row := &ro.table[i]; !used[row] && !isFallback(row) {
			unused = append(unused, row.method+" "+row.path)
		}
	}
	sort.Strings(unused)
	// The first is the proxy's own; older Engines register the second.
	want := []string{"GET /_ds01/limits", "POST /containers/{ref:.*}/copy"}
	if strings.Join(unused, "\n") != strings.Join(want, "\n") {
		t.Errorf("rows that no Engine registers: %q", unused)
	}
}

// shape is a template with its variables' names and patterns taken out; the
// table has one row for everything below /debug.
func shape(template string) string {
	if strings.HasPrefix(template, "/debug/") {
		return "/debug"
	}
	return example(template)
}

// TestRowsDecide holds that no row is without a guard.
func TestRowsDecide(t *testing.T) {
	seen := make(map[operation]bool)
	for _, row := range append(table(), unknown) {
		if row.guard == nil {
			t.Errorf("%s %s has no guard", row.method, row.path)
		}
		op := operation{row.method, row.path}
		if seen[op] {
			t.Errorf("%s %s stands twice", row.method, row.path)
		}
		seen[op] = true
	}
}

func TestCheckTarget(t *testing.T) {
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", "/containers/json", 0},
		{"GET", "/networks/", 0},
		{"GET", "/containers/%6a%73on", 0},
		{"GET", "/images/a/b/json", 0},
		{"GET", "/containers%2Fjson", 400},
		{"GET", "/containers%2fjson", 400},
		{"GET", "//containers/json", 400},
		{"GET", "/containers//json", 400},
		{"GET", "/containers/./json", 400},
		{"GET", "/containers/../info", 400},
		{"GET", "/containers/%2e%2e/info", 400},
		{"GET", "/containers/a%00/json", 400},
		{"GET", "/containers/a%0a/json", 400},
		{"GET", "/", 0},
		{"PATCH", "/containers/json", 405},
		{"OPTIONS", "/containers/json", 405},
		{"PRI", "/containers/json", 405},
		{"get", "/containers/json", 405},
	} {
		u, err := url.ParseRequestURI(c.target)
		if err != nil {
			t.Fatal(err)
		}
		err = checkTarget(&http.Request{Method: c.method, URL: u, ProtoMajor: 1})
		status := 0
		if e, ok := err.(*statusError); ok {
			status = e.status
		}
		if status != c.status {
			t.Errorf("%s %s: %d (%v), want %d", c.method, c.target, status, err, c.status)
		}
	}
}

func TestSplitVersion(t *testing.T) {
	for _, c := range []struct{ path, version, rest string }{
		{"/v1.41/info", "1.41", "/info"},
		{"/v1.41.0/info", "1.41.0", "/info"},
		{"/v1/info", "1", "/info"},
		{"/v./info", ".", "/info"},
		{"/info", "", "/info"},
		{"/v/info", "", "/v/info"},
		{"/v1.41", "", "/v1.41"},
		{"/v1.41/", "1.41", "/"},
		{"/v1.x/info", "", "/v1.x/info"},
		{"/version", "", "/version"},
		{"/volumes/a", "", "/volumes/a"},
		{"/v1.41/v1.41/info", "1.41", "/v1.41/info"},
	} {
		if v, rest := splitVersion(c.path); v != c.version || rest != c.rest {
			t.Errorf("%s: version %q of %q, want %q of %q", c.path, v, rest, c.version, c.rest)
		}
	}
}
