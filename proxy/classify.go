package proxy

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/docker/docker/api"
	"github.com/docker/docker/api/types/versions"
	"github.com/gorilla/mux"
)

// A router finds the row of a request. Rows are grouped by the first segment of
// their path, so that a request is compared with a few of them only.
type router struct {
	table     []route
	bySegment map[string]*mux.Router
}

func newRouter(rows []route) *router {
	r := &router{table: rows, bySegment: make(map[string]*mux.Router)}
	for i := range rows {
		row := &rows[i]
		seg := firstSegment(row.path)
		m := r.bySegment[seg]
		if m == nil {
			// Paths are cleaned, or refused, before they come here.
			m = mux.NewRouter().SkipClean(true)
			r.bySegment[seg] = m
		}
		one := m.Path(row.path)
		if row.method != anyMethod {
			one.Methods(row.method)
		}
		one.Handler(row)
	}
	return r
}

// firstSegment returns what stands between the first two slashes.
func firstSegment(p string) string {
	seg, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	return seg
}

// match returns the row for r, whose path has no version prefix any more, and
// what its variables are; nil where no row matches.
func (ro *router) match(r *http.Request) (*route, map[string]string) {
	m := ro.bySegment[firstSegment(r.URL.Path)]
	if m == nil {
		return nil, nil
	}
	var found mux.RouteMatch
	if !m.Match(r, &found) || found.MatchErr != nil {
		return nil, nil
	}
	row, ok := found.Handler.(*route)
	if !ok {
		return nil, nil
	}
	return row, found.Vars
}

// ServeHTTP makes a row something that mux can hold; it is never called.
func (*route) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusInternalServerError, "a route is not a handler")
}

// maxPathLength is the longest decoded path, in bytes, that is looked at: the
// Engine's longest routes have names of 255 and IDs of 64.
const maxPathLength = 4096

// checkTarget refuses request targets that the proxy and the Engine could read
// differently.
func checkTarget(r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		return &statusError{http.StatusMethodNotAllowed, fmt.Sprintf("method %.32s is not part of the Docker API", r.Method)}
	}
	if r.ProtoMajor != 1 {
		return &statusError{http.StatusHTTPVersionNotSupported, "only HTTP/1.0 and HTTP/1.1 are spoken here"}
	}
	p := r.URL.Path
	if len(p) > maxPathLength {
		return &statusError{http.StatusRequestURITooLong, fmt.Sprintf("the path is longer than %d bytes", maxPathLength)}
	}
	if r.URL.Opaque != "" || r.URL.User != nil || !strings.HasPrefix(p, "/") {
		return badRequest("the request's target %.200q is not a path", r.RequestURI)
	}
	if r.URL.RawPath != "" && hasEncodedSlash(r.URL.RawPath) {
		return badRequest("the path %.200q has an encoded slash; write it as /", r.URL.RawPath)
	}
	for i := range len(p) {
		if p[i] < 0x20 || p[i] == 0x7f {
			return badRequest("the path %.200q has a control character", p)
		}
	}
	if clean := path.Clean(p); clean != p && clean+"/" != p {
		return badRequest("the path %.200q is not in its shortest form; write it as %.200q", p, clean)
	}
	return nil
}

// hasEncodedSlash reports whether an escaped path holds %2F.
func hasEncodedSlash(raw string) bool {
	for {
		i := strings.IndexByte(raw, '%')
		if i < 0 || i+2 >= len(raw) {
			return false
		}
		if raw[i+1] == '2' && raw[i+2]|0x20 == 'f' {
			return true
		}
		raw = raw[i+1:]
	}
}

// splitVersion takes the API version off a path: /v1.41/info is version 1.41 of
// /info. A path without one has the version "".
func splitVersion(p string) (version, rest string) {
	after, ok := strings.CutPrefix(p, "/v")
	if !ok {
		return "", p
	}
	i := strings.IndexByte(after, '/')
	if i <= 0 {
		return "", p
	}
	for _, c := range []byte(after[:i]) {
		if (c < '0' || c > '9') && c != '.' {
			return "", p
		}
	}
	return after[:i], after[i:]
}

// The API versions that the proxy's types describe.
const (
	minVersion = "1.24"
	maxVersion = api.DefaultVersion
)

// checkVersion refuses versions that the proxy does not know, in the Engine's
// own words.
func checkVersion(version, highest string) error {
	switch {
	case version == "":
		return nil
	case versions.LessThan(version, minVersion):
		return badRequest("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, minVersion)
	case versions.GreaterThan(version, highest):
		return badRequest("client version %s is too new. Maximum supported API version is %s", version, highest)
	}
	return nil
}

// pinned returns the API version that requests are forwarded in where they name
// none, and the highest that is offered: the Engine's own, or the newest that
// the proxy's types know, whichever is older.
func pinned(engineVersion string) string {
	if engineVersion == "" || versions.GreaterThan(engineVersion, maxVersion) {
		return maxVersion
	}
	return engineVersion
}

// parseQuery parses a query that the Engine would accept.
func parseQuery(raw string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, badRequest("the query cannot be parsed: %v", err)
	}
	return q, nil
}
