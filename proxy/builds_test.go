package proxy

import (
	"net/url"
	"testing"
)

// TestBuildIDsAreAUsersOwn wants the user's name before every build ID, where it
// begins a build, where it brings a context, and where it cancels.
func TestBuildIDsAreAUsersOwn(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct{ target, key, want string }{
		{"/build?buildid=x", "buildid", "alice/x"},
		{"/build?version=2&buildid=x&buildid=y", "buildid", "alice/x"},
		{"/build?version=2&buildid=upload-request:x", "buildid", "upload-request:alice/x"},
		{"/build?version=2&buildid=upload-request:upload-request:x", "buildid", "upload-request:alice/upload-request:x"},
		{"/build?version=2&buildid=bob/x", "buildid", "alice/bob/x"},
		{"/build?version=2", "buildid", ""},
		{"/build/cancel?id=x&id=y", "id", "alice/x"},
		{"/build/cancel?id=upload-request:x", "id", "alice/upload-request:x"},
		{"/build/cancel", "id", ""},
	} {
		b.do(t, post, c.target, "")
		arrived := b.engine.take()
		if len(arrived) != 1 {
			t.Fatalf("%s arrived as %v", c.target, arrived)
		}
		u, err := url.ParseRequestURI(arrived[0].Target)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.Query()[c.key]; c.want == "" && len(got) > 0 && got[0] != "" || c.want != "" && (len(got) != 1 || got[0] != c.want) {
			t.Errorf("%s arrived as %s, want %q", c.target, arrived[0].Target, c.want)
		}
	}
}
