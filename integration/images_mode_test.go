package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// configured starts a proxy of the test's own with a configuration.
func configured(t *testing.T, text string) *lab.Proxy {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return ownProxy(t, theEngine.Socket, "--config", conf)
}

// TestTagsAreRememberedOverRestarts ends the proxy between a tag and its theft, once
// in an orderly way and once by SIGKILL.
func TestTagsAreRememberedOverRestarts(t *testing.T) {
	untag(t, "kept:1")
	p := configured(t, "builds: {buildkit: deny}\n")
	want := func(status int, who lab.Person, text string) {
		t.Helper()
		got := ask(t, p.Socket(who), "POST", "/images/busybox:local/tag?repo=kept&tag=1", "")
		if got.status != status || !strings.Contains(got.body, text) {
			t.Errorf("%s: %d %s, want %d and %q", who.Name, got.status, got.body, status, text)
		}
	}
	want(http.StatusCreated, lab.Bob, "")
	for _, end := range []func() error{p.Stop, p.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob}); err != nil {
			t.Fatal(err)
		}
		want(http.StatusForbidden, lab.Alice, "this image belongs to bob")
		want(http.StatusCreated, lab.Bob, "")
	}
	register := filepath.Join(p.Dir, "state", "images.json")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(register)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(register, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(limit(t), nil); err == nil || !strings.Contains(p.Log(), "images.json cannot be read") {
		t.Errorf("a broken register: %v", err)
	}
	if err := os.WriteFile(register, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob}); err != nil {
		t.Fatal(err)
	}
	want(http.StatusForbidden, lab.Alice, "this image belongs to bob")
}

// TestPrivateImages looks for bob's image as alice, everywhere.
func TestPrivateImages(t *testing.T) {
	classic(t)
	untag(t, "priv:1", "priv-alice:1")
	tidy(t, "priv-c")
	p := configured(t, "images: private\nbuilds: {buildkit: deny}\n")
	run := func(who lab.Person, args ...string) (string, error) {
		t.Helper()
		return p.Docker(limit(t), who, args...)
	}
	must := func(who lab.Person, args ...string) string {
		t.Helper()
		out, err := run(who, args...)
		if err != nil {
			t.Fatalf("%s: docker %v: %v: %s", who.Name, args, err, out)
		}
		return strings.TrimSpace(out)
	}
	dir := dockerfile(t, lab.Bob, "priv", "FROM busybox:local\nRUN echo secret >/secret\n")
	must(lab.Bob, "build", "-q", "-t", "priv:1", dir)
	id := imageID(t, "priv:1")
	step := admin(t, "image", "inspect", id, "--format", "{{.Parent}}")
	for _, ref := range []string{"priv:1", "docker.io/library/priv:1", id, id[7:19], step, step[7:19]} {
		for _, a := range []struct{ method, target, body string }{
			{"GET", "/images/REF/json", ""}, {"GET", "/images/REF/history", ""}, {"GET", "/images/REF/get", ""}, {"GET", "/images/get?names=REF", ""},
			{"GET", "/images/get?names=busybox:local&names=REF", ""}, {"POST", "/images/REF/tag?repo=priv-alice&tag=1", ""}, {"DELETE", "/images/REF?force=1", ""},
			{"POST", "/containers/create?name=priv-c", `{"Image":"REF"}`},
			{"POST", "/containers/create?name=priv-c", `{"Image":"busybox:local","HostConfig":{"Mounts":[{"Type":"image","Source":"REF","Target":"/d"}]}}`},
		} {
			got := ask(t, p.Socket(lab.Alice), a.method, strings.Replace(a.target, "REF", ref, 1), strings.Replace(a.body, "REF", ref, 1))
			if got.status != http.StatusNotFound || !strings.Contains(got.body, "No such image") {
				t.Errorf("%s %s of %s: %d %.200s", a.method, a.target, ref, got.status, got.body)
			}
		}
	}
	for _, target := range []string{"/images/priv/push?tag=1", "/images/priv/push", "/images/priv:1/push"} {
		if got := ask(t, p.Socket(lab.Alice), "POST", target, "", "X-Registry-Auth", "e30="); got.status != http.StatusNotFound {
			t.Errorf("%s: %d %.200s", target, got.status, got.body)
		}
	}
	for _, target := range []string{"/images/json", "/images/json?all=1", "/system/df", `/images/json?filters=%7B%22reference%22%3A%5B%22priv%22%5D%7D`} {
		got := ask(t, p.Socket(lab.Alice), "GET", target, "")
		for _, secret := range []string{"priv:1", id, step} {
			if got.status != 200 || strings.Contains(strings.ReplaceAll(got.body, `"ParentId":"`+step, ""), secret) {
				t.Errorf("%s: %d shows %s: %.300s", target, got.status, secret, got.body)
			}
		}
	}
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		if out := must(who, "images", "--format", "{{.Repository}}:{{.Tag}}"); !strings.Contains(out, lab.Image) || strings.Contains(out, "priv:1") != (who == lab.Bob) {
			t.Errorf("%s lists %s", who.Name, out)
		}
		must(who, "run", "--rm", lab.Image, "true")
	}
	if out := must(lab.Bob, "run", "--rm", "priv:1", "cat", "/secret"); out != "secret" {
		t.Errorf("bob's own: %s", out)
	}
	// What has no name is its bringer's too.
	archive := filepath.Join(p.Home(lab.Alice), "a.tar")
	writeTar(t, archive, map[string]string{"f": "alice's"})
	brought := must(lab.Alice, "import", archive)
	must(lab.Alice, "image", "inspect", brought)
	if out, err := run(lab.Bob, "image", "inspect", brought); err == nil {
		t.Errorf("bob sees what alice imported: %s", out)
	}
	if !strings.Contains(must(lab.Alice, "images", "-q", "--no-trunc"), brought) {
		t.Error("alice does not list what she imported")
	}
	must(lab.Alice, "rmi", brought)
}

// TestImagePrunesAreOnesOwn prunes as alice with all sorts of filters.
func TestImagePrunesAreOnesOwn(t *testing.T) {
	classic(t)
	untag(t, "prune-alice:1", "prune-alice:2", "prune-theft:1", "prune-bob:1")
	build := func(who lab.Person, tag, text string) string {
		t.Helper()
		args := []string{"build", "-q"}
		if tag != "" {
			args = append(args, "-t", tag)
		}
		return as(t, who, append(args, dockerfile(t, who, "prune", "FROM busybox:local\n"+text+"\n"))...)
	}
	last := func(out string) string { return out[strings.LastIndexByte(out, '\n')+1:] }
	mine := last(build(lab.Alice, "", "ENV dangling=alice"))
	bobs := last(build(lab.Bob, "", "ENV dangling=bob"))
	build(lab.Alice, "prune-alice:1", "ENV tagged=1\nLABEL keep=no")
	build(lab.Alice, "prune-alice:2", "ENV tagged=2\nLABEL keep=yes")
	build(lab.Bob, "prune-bob:1", "ENV tagged=bob")
	as(t, lab.Bob, "tag", "prune-alice:2", "prune-theft:1")
	there := func(want bool, refs ...string) {
		t.Helper()
		for _, ref := range refs {
			if _, err := theEngine.Docker(limit(t), "image", "inspect", ref); (err == nil) != want {
				t.Errorf("%s is there: %t", ref, err == nil)
			}
		}
	}
	as(t, lab.Alice, "image", "prune", "-f", "--filter", "label=nosuch")
	as(t, lab.Alice, "image", "prune", "-f", "--filter", "until=24h")
	as(t, lab.Alice, "image", "prune", "-a", "-f", "--filter", "label!=ds01.user")
	there(true, mine, bobs, "prune-alice:1")
	if out := as(t, lab.Alice, "image", "prune", "-f"); !strings.Contains(out, mine[7:]) {
		t.Errorf("the prune says %s", out)
	}
	there(false, mine)
	there(true, bobs, "prune-alice:1")
	as(t, lab.Alice, "image", "prune", "-a", "-f", "--filter", "label=keep=no")
	there(false, "prune-alice:1")
	there(true, "prune-alice:2")
	for _, target := range []string{
		"/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D", "/images/prune?filters=%7B%22dangling%22%3A%7B%220%22%3Atrue%7D%2C%22label%22%3A%7B%22ds01.user%3Dbob%22%3Atrue%7D%7D",
	} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", target, "{}"); got.status != 200 {
			t.Errorf("%s: %v", target, got)
		}
	}
	// Bob has a name for alice's second image.
	there(true, "prune-alice:2", "prune-theft:1", "prune-bob:1", bobs, lab.Image)
	for _, filters := range []string{"%7B%22nosuch%22%3A%5B%22x%22%5D%7D", "%7B%22dangling%22%3A%5B%22maybe%22%5D%7D", "%7B%22until%22%3A%5B%22x%22%5D%7D", "%5B"} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/images/prune?filters="+filters, ""); got.status != http.StatusBadRequest {
			t.Errorf("%s: %v", filters, got)
		}
	}
	as(t, lab.Bob, "image", "prune", "-a", "-f")
	there(false, bobs, "prune-bob:1")
	there(true, "prune-alice:2", lab.Image)
}

// TestOtherWaysToBringAnImage refuses what fetches with the host's network or moves
// tags unseen, and lets nobody cancel another's build.
func TestOtherWaysToBringAnImage(t *testing.T) {
	for _, c := range []struct{ target, text string }{
		{"/images/create?fromSrc=http://127.0.0.1:1/x", "importing from a URL"},
		{"/images/create?fromSrc=127.0.0.1:1", "importing from a URL"},
		{"/images/create?fromSrc=-&changes=LABEL+ds01.user=bob", "labels that begin with ds01."},
		{"/images/create?repo=x", "importing from a URL"},
		{"/build?pull=1", "build without --pull"},
		{"/build?pull=true&pull=0", "build without --pull"},
	} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", c.target, ""); got.status != 403 || !strings.Contains(got.body, c.text) {
			t.Errorf("%s: %v, want %q", c.target, got, c.text)
		}
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/build/cancel?id=nosuch", ""); got.status != 200 {
		t.Errorf("cancel of nothing: %v", got)
	}
}
