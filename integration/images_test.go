package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// untag removes images by name at the end, as the admin.
func untag(t *testing.T, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, name := range names {
			_, _ = theEngine.Docker(context.Background(), "rmi", "-f", name)
		}
	})
}

// imageID is the ID that a name stands for, or "".
func imageID(t *testing.T, name string) string {
	t.Helper()
	out, _ := theEngine.Docker(limit(t), "images", "-q", "--no-trunc", name)
	return strings.TrimSpace(out)
}

// dockerfile writes a Dockerfile into a person's home and returns its directory.
func dockerfile(t *testing.T, who lab.Person, name, text string) string {
	t.Helper()
	dir := filepath.Join(theProxy.Home(who), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// classic keeps the docker CLI from building with BuildKit.
func classic(t *testing.T) { t.Setenv("DOCKER_BUILDKIT", "0") }

// TestTagsBelongToTheirWriters has bob write a tag in every way that there is, and
// alice try to write, move and remove it in every way that there is.
func TestTagsBelongToTheirWriters(t *testing.T) {
	classic(t)
	tidy(t, "tags-c-alice", "tags-c-bob")
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		as(t, who, "create", "--name", "tags-c-"+who.Name, lab.Image)
	}
	bobs := dockerfile(t, lab.Bob, "tags", "FROM busybox:local\nENV of=bob\n")
	hers := dockerfile(t, lab.Alice, "tags", "FROM busybox:local\nENV of=alice\n")
	archive := filepath.Join(theProxy.Home(lab.Bob), "tags.tar")
	files := filepath.Join(hers, "files.tar")
	writeTar(t, files, map[string]string{"f": "x"})
	for how, write := range map[string][][]string{
		"build":  {{"build", "-q", "-t", "tags-build:1", bobs}},
		"tag":    {{"tag", lab.Image, "tags-tag:1"}},
		"commit": {{"commit", "tags-c-bob", "tags-commit:1"}},
		"import": {{"import", files, "tags-import:1"}},
		"load":   {{"tag", lab.Image, "tags-load:1"}, {"save", "-o", archive, "tags-load:1"}, {"rmi", "tags-load:1"}, {"load", "-i", archive}},
	} {
		t.Run(how, func(t *testing.T) {
			name := "tags-" + how + ":1"
			untag(t, name)
			for _, args := range write {
				as(t, lab.Bob, args...)
			}
			id := imageID(t, name)
			if id == "" {
				t.Fatal("bob's image is not there")
			}
			for _, args := range [][]string{
				{"tag", lab.Image, name}, {"tag", lab.Image, "docker.io/library/" + name}, {"build", "-q", "-t", "tags-new:1", "-t", name, hers},
				{"commit", "tags-c-alice", name}, {"import", files, name}, {"load", "-i", savedAs(t, name)},
				{"rmi", name}, {"rmi", "-f", name}, {"rmi", "-f", "index.docker.io/library/" + name}, {"pull", name},
			} {
				refused(t, lab.Alice, "this image belongs to bob", args...)
			}
			if how != "tag" && how != "load" {
				// Those two names are of busybox:local, which nobody is known to have written.
				for _, ref := range []string{id, id[7:], id[7:19], id[7:15]} {
					refused(t, lab.Alice, "this image belongs to bob", "rmi", "-f", ref)
				}
			}
			if now := imageID(t, name); now != id {
				t.Errorf("%s was %s and is %s", name, id, now)
			}
			if imageID(t, "tags-new:1") != "" {
				t.Error("the build that was refused wrote its other name")
			}
			// To read and run it is free, and bob may do everything.
			if how != "import" {
				as(t, lab.Alice, "run", "--rm", name, "true")
			}
			as(t, lab.Alice, "image", "inspect", name)
			for _, args := range append(write, []string{"rmi", name}) {
				as(t, lab.Bob, args...)
			}
			// A name that is free is everybody's.
			as(t, lab.Alice, "tag", lab.Image, name)
			refused(t, lab.Bob, "this image belongs to alice", "tag", lab.Image, name)
		})
	}
}

// writeTar writes a tar archive.
func writeTar(t *testing.T, path string, files map[string]string) {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// savedAs saves busybox:local as an archive that says it is name, compressed.
func savedAs(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(theProxy.Home(lab.Alice), "saved.tar.gz")
	admin(t, "save", "-o", path+".plain", lab.Image)
	defer os.Remove(path + ".plain")
	text, err := os.ReadFile(path + ".plain")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w, r := tar.NewWriter(z), tar.NewReader(bytes.NewReader(text))
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		body := new(bytes.Buffer)
		if _, err := body.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		// Engines that keep images in containerd read the second.
		if h.Name == "manifest.json" || h.Name == "index.json" {
			body = bytes.NewBufferString(strings.Replace(body.String(), lab.Image, name, 1))
			h.Size = int64(body.Len())
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := body.WriteTo(w); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTagsThatOthersStandOn wants a tag to stay where another user's container, or
// an image that they built, stands on it; even its writer may not move it.
func TestTagsThatOthersStandOn(t *testing.T) {
	classic(t)
	tidy(t, "stand-bob")
	untag(t, "stand:1", "stand-bob:1", "stand-base:1")
	dir := dockerfile(t, lab.Alice, "stand", "FROM busybox:local\nENV of=alice\n")
	other := dockerfile(t, lab.Alice, "stand-2", "FROM busybox:local\nENV of=alice2\n")
	as(t, lab.Alice, "build", "-q", "-t", "stand:1", dir)
	as(t, lab.Alice, "tag", "stand:1", "stand-base:1")
	as(t, lab.Bob, "create", "--name", "stand-bob", "stand:1")
	id := imageID(t, "stand:1")
	writes := [][]string{
		{"tag", lab.Image, "stand:1"}, {"build", "-q", "-t", "stand:1", other}, {"rmi", "stand:1"}, {"rmi", "-f", "stand:1"}, {"rmi", "-f", id},
	}
	for _, args := range writes {
		refused(t, lab.Alice, "of bob's stands on the image", args...)
	}
	as(t, lab.Bob, "rm", "stand-bob")
	as(t, lab.Bob, "build", "-q", "-t", "stand-bob:1", dockerfile(t, lab.Bob, "stand", "FROM stand:1\nENV more=1\n"))
	for _, args := range writes {
		refused(t, lab.Alice, "of bob's stands on the image", args...)
	}
	if now := imageID(t, "stand:1"); now != id {
		t.Errorf("stand:1 was %s and is %s", id, now)
	}
	as(t, lab.Bob, "rmi", "stand-bob:1")
	for _, args := range [][]string{writes[0], {"rmi", "stand:1"}, {"rmi", "stand-base:1"}} {
		as(t, lab.Alice, args...)
	}
}

// TestNamesOfImagesAreNotIDs refuses names that would win over an ID.
func TestNamesOfImagesAreNotIDs(t *testing.T) {
	id := imageID(t, lab.Image)
	for _, name := range []string{id[7:19], id[7:14], "deadbeefcafe:1", "docker.io/library/" + id[7:19], "sha256:abc"} {
		refused(t, lab.Alice, "looks like an image's ID", "tag", lab.Image, name)
	}
	for _, name := range []string{"UPPER:1", "a@" + id, "a:b:c", "-x"} {
		if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/images/busybox:local/tag?repo="+name, ""); got.status != http.StatusBadRequest {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestPullsDoNotMoveTags pulls from a registry that has moved a tag: not under
// somebody's container.
func TestPullsDoNotMoveTags(t *testing.T) {
	reg := lab.NewRegistry()
	defer reg.Close()
	name := reg.Host() + "/app:1"
	tidy(t, "pull-bob")
	untag(t, name)
	set := func(tag, text string) string {
		digest, err := reg.Set("app", tag, text)
		if err != nil {
			t.Fatal(err)
		}
		untag(t, reg.Host()+"/app@"+digest)
		return digest
	}
	set("1", "first")
	as(t, lab.Alice, "pull", name)
	first := imageID(t, name)
	as(t, lab.Bob, "create", "--name", "pull-bob", name)
	// Unmoved, a pull is harmless.
	if out := as(t, lab.Alice, "pull", name); !strings.Contains(out, "up to date") {
		t.Errorf("a pull of what is there: %s", out)
	}
	second := set("1", "second")
	for _, args := range [][]string{{"pull", name}, {"pull", "-a", reg.Host() + "/app"}, {"create", "--pull", "always", name}} {
		refused(t, lab.Alice, "of bob's stands on the image", args...)
	}
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/images/create?fromImage="+reg.Host()+"/app:1&tag=", ""); got.status != http.StatusForbidden {
		t.Errorf("a tag in fromImage: %v", got)
	}
	if now := imageID(t, name); now != first {
		t.Errorf("%s moved from %s to %s", name, first, now)
	}
	refused(t, lab.Alice, second, "pull", name)
	as(t, lab.Alice, "pull", reg.Host()+"/app@"+second)
	as(t, lab.Bob, "rm", "pull-bob")
	as(t, lab.Bob, "pull", name)
	if now := imageID(t, name); now == first || now == "" {
		t.Errorf("%s is %s after a pull with nobody on it", name, now)
	}
	refused(t, lab.Alice, "No such image", "image", "inspect", "never-pulled:1")
	if got := ask(t, theProxy.Socket(lab.Alice), "POST", "/containers/create", `{"Image":"never-pulled:1"}`); got.status != http.StatusNotFound || !strings.Contains(got.body, "No such image") {
		t.Errorf("a missing image: %v", got)
	}
}
