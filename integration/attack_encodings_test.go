package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// encodings are ways to write a reference in a path, and whether the Engine
// itself still finds what is meant.
var encodings = []struct {
	name    string
	write   func(ref string) string
	reaches bool
}{
	{"plain", func(ref string) string { return ref }, true},
	{"every byte", percent("%%%02x"), true},
	{"every byte, in capitals", percent("%%%02X"), true},
	{"one byte", func(ref string) string { return fmt.Sprintf("%%%02x", ref[0]) + ref[1:] }, true},
	{"twice", percent("%%25%02x"), false},
	{"in capitals", strings.ToUpper, false},
	{"a slash before", func(ref string) string { return "/" + ref }, false},
	{"an encoded slash before", func(ref string) string { return "%2f" + ref }, false},
	{"an encoded slash after", func(ref string) string { return ref + "%2F" }, false},
	{"a slash after", func(ref string) string { return ref + "/" }, false},
	{"a dot before", func(ref string) string { return "./" + ref }, false},
	{"an encoded dot before", func(ref string) string { return "%2e/" + ref }, false},
	{"up again", func(ref string) string { return "x/../" + ref }, false},
	{"up again, encoded", func(ref string) string { return "x/%2e%2e/" + ref }, false},
	{"a space after", func(ref string) string { return ref + "%20" }, false},
	{"a zero after", func(ref string) string { return ref + "%00" }, false},
	{"a semicolon after", func(ref string) string { return ref + ";x" }, false},
	{"a question mark after", func(ref string) string { return ref + "%3f" }, false},
}

// percent encodes every byte by a format.
func percent(format string) func(string) string {
	return func(ref string) string {
		var out strings.Builder
		for _, c := range []byte(ref) {
			fmt.Fprintf(&out, format, c)
		}
		return out.String()
	}
}

// escaped writes a reference in JSON with an escape for every byte.
func escaped(ref string) string { return percent(`\u%04x`)(ref) }

// apiVersions are ways to say a version, and whether the Engine itself takes it.
func apiVersions(t *testing.T) map[string]bool {
	t.Helper()
	oldest, newest := engineVersions(t)
	minor := strings.TrimPrefix(oldest, "1.")
	return map[string]bool{
		"": true, "/v" + oldest: true, "/v" + newest: true, "/v1.0" + minor: true, "/v01." + minor: true, "/v" + oldest + ".0": true,
		"/v1.999": false, "/V" + oldest: false, "/v" + oldest + "/v" + oldest: false, "/%76%31." + minor: true, "/v": false,
	}
}

// engineVersions are the oldest version of the API that both the Engine and the proxy
// take, and the newest of the Engine.
func engineVersions(t *testing.T) (oldest, newest string) {
	t.Helper()
	var v struct {
		Min string `json:"MinAPIVersion"`
		Max string `json:"ApiVersion"`
	}
	if err := json.Unmarshal([]byte(ask(t, theEngine.Socket, "GET", "/version", "").body), &v); err != nil {
		t.Fatal(err)
	}
	// All have the major version 1 and two digits.
	return max(v.Min, "1.24"), v.Max
}

// TestAttackEncodings writes bob's things in every encoding and asks, as alice, by
// every row and field of the table once: none is answered, and nothing has changed.
func TestAttackEncodings(t *testing.T) {
	w := newWorld(t)
	versions := apiVersions(t)
	done := make(map[string]bool)
	for _, a := range attacks() {
		if a.ref == "" || a.status > 0 && a.status < 400 || done[a.row+a.field] {
			continue
		}
		done[a.row+a.field] = true
		t.Run(a.title(), func(t *testing.T) {
			w.t = t
			for _, target := range w.encoded(&a, versions) {
				got := ask(t, w.socket(&a), a.verb(), target.path, target.body, append([]string{"Connection", "Upgrade", "Upgrade", "tcp"}, a.header...)...)
				if got.status < 400 || got.status >= 500 {
					t.Errorf("%s %s %s: %d %.500s", a.verb(), target.path, target.body, got.status, got.body)
				}
				if strings.Contains(got.body, "atk-secret") {
					t.Errorf("%s %s tells: %.500s", a.verb(), target.path, got.body)
				}
			}
			for key, is := range w.look() {
				if was := w.seen[key]; is != was {
					t.Errorf("%s changed:\n%s\n%s", key, apart(was, is), apart(is, was))
				}
			}
			if t.Failed() {
				w.mend()
			}
		})
	}
}

type encodedTarget struct{ path, body string }

// encoded is an attack in all encodings: of its path with and without a version,
// or else of its query and its body.
func (w *world) encoded(a *attack, versions map[string]bool) []encodedTarget {
	var all []encodedTarget
	path, _, _ := strings.Cut(a.target, "?")
	forms := w.forms(a.ref)
	if len(forms) > 2 {
		// By ID and by name.
		forms = []string{forms[0], forms[len(forms)-1]}
	}
	for _, ref := range forms {
		add := func(target, written string) {
			all = append(all, encodedTarget{w.words(target, written), w.words(a.body, ref)})
		}
		switch {
		case strings.Contains(path, "_REF_"):
			for _, e := range encodings {
				add(a.target, e.write(ref))
			}
			for version := range versions {
				add(version+a.target, ref)
			}
			if strings.HasSuffix(path, "_REF_") {
				add(strings.Replace(a.target, "_REF_", "_REF_/", 1), ref)
			} else {
				add(strings.Replace(a.target, path, path+"/", 1), ref)
			}
		case strings.Contains(a.target, "_REF_"):
			for _, format := range []string{"%%%02x", "%%%02X", "%%25%02x"} {
				add(a.target, percent(format)(ref))
			}
		default:
			all = append(all, encodedTarget{w.words(a.target, ref), w.words(a.body, escaped(ref))})
		}
	}
	return all
}

// TestEncodingsOnTheEngineItself holds which encodings and versions the Engine
// itself follows, so that the others are known to be harmless.
func TestEncodingsOnTheEngineItself(t *testing.T) {
	id := container(t, lab.Bob, "enc-bob")
	reaches := func(target string) bool {
		got := ask(t, theEngine.Socket, "GET", target, "")
		return got.status == 200 && strings.Contains(got.body, id)
	}
	for _, e := range encodings {
		if e.name == "a zero after" {
			// Some Engines cut it off an ID.
			continue
		}
		for _, ref := range []string{id, "enc-bob"} {
			if got := reaches("/containers/" + e.write(ref) + "/json"); got != e.reaches {
				t.Errorf("%s: %s: reaches bob's container: %t, want %t", e.name, e.write(ref), got, e.reaches)
			}
		}
	}
	for version, taken := range apiVersions(t) {
		if got := reaches(version + "/containers/enc-bob/json"); got != taken {
			t.Errorf("version %q: reaches bob's container: %t, want %t", version, got, taken)
		}
	}
	if got := reaches(query("/containers/json?all=1", "filters", `{"name":["`+escaped("enc-bob")+`"]}`)); !got {
		t.Error("escapes in JSON are not read")
	}
}
