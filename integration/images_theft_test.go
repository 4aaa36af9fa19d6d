package integration

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestAPullGivesNobodyATag pulls what bob pulled, as another platform's and as it is:
// neither makes it alice's.
func TestAPullGivesNobodyATag(t *testing.T) {
	reg := lab.NewRegistry()
	defer reg.Close()
	name := reg.Host() + "/multi:1"
	untag(t, name)
	if _, err := reg.SetFor("multi", "1", "first", "amd64", "arm64"); err != nil {
		t.Fatal(err)
	}
	as(t, lab.Bob, "pull", name)
	first := imageID(t, name)
	other := "linux/arm64"
	if got := admin(t, "image", "inspect", name, "--format", "{{.Os}}/{{.Architecture}}"); got == other {
		other = "linux/amd64"
	} else {
		as(t, lab.Alice, "pull", "--platform", got, name)
	}
	refused(t, lab.Alice, "this image belongs to bob", "pull", "--platform", other, name)
	if now := imageID(t, name); now != first {
		t.Errorf("%s was %s and is %s", name, first, now)
	}
	// It moves at the registry: nobody stands on it, and it stays bob's.
	if _, err := reg.SetFor("multi", "1", "second", "amd64", "arm64"); err != nil {
		t.Fatal(err)
	}
	as(t, lab.Alice, "pull", name)
	if now := imageID(t, name); now == first {
		t.Error("the pull of a moved tag moved nothing")
	}
	untag(t, first)
	refused(t, lab.Alice, "this image belongs to bob", "tag", lab.Image, name)
	as(t, lab.Bob, "rmi", name)
}

// TestTwoUsersPullOneImage lets both pull at the same time.
func TestTwoUsersPullOneImage(t *testing.T) {
	reg := lab.NewRegistry()
	defer reg.Close()
	started := make(chan struct{}, 16)
	reg.Wait = func() {
		started <- struct{}{}
		time.Sleep(time.Second)
	}
	if _, err := reg.Set("slow", "1", "slow"); err != nil {
		t.Fatal(err)
	}
	name := reg.Host() + "/slow:1"
	untag(t, name)
	var wg sync.WaitGroup
	for _, who := range []lab.Person{lab.Alice, lab.Bob} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if out, err := theProxy.Docker(limit(t), who, "pull", name); err != nil {
				t.Errorf("%s: %v: %s", who.Name, err, out)
			}
		}()
		if who == lab.Alice {
			<-started
		}
	}
	wg.Wait()
}

// TestANamelessImageIsItsBuilders gives bob's nameless image a name and takes it
// away again, and brings it a second time: it stays.
func TestANamelessImageIsItsBuilders(t *testing.T) {
	classic(t)
	out := as(t, lab.Bob, "build", "-q", dockerfile(t, lab.Bob, "nameless", "FROM busybox:local\nENV nameless=bob\n"))
	id := out[strings.LastIndexByte(out, '\n')+1:]
	untag(t, "nameless:1", id)
	const text = "this image belongs to bob"
	refused(t, lab.Alice, text, "rmi", id)
	as(t, lab.Alice, "tag", id, "nameless:1")
	for _, args := range [][]string{{"rmi", "nameless:1"}, {"rmi", "-f", "nameless:1"}, {"rmi", "-f", id}} {
		refused(t, lab.Alice, text, args...)
	}
	archive := filepath.Join(theProxy.Home(lab.Alice), "nameless.tar")
	as(t, lab.Alice, "save", "-o", archive, id)
	as(t, lab.Alice, "load", "-i", archive)
	refused(t, lab.Alice, text, "rmi", "-f", id)
	as(t, lab.Bob, "image", "inspect", id)
}

// TestPushingAnImageDoesNotGiveItAway pushes what bob built: it stays his, hidden
// where images are private, and standing on what it stands on where not.
func TestPushingAnImageDoesNotGiveItAway(t *testing.T) {
	classic(t)
	reg := lab.NewRegistry()
	defer reg.Close()
	p := configured(t, "images: private\nbuilds: {buildkit: deny}\n")
	name := reg.Host() + "/bob/priv:1"
	untag(t, name)
	dir := dockerfile(t, lab.Bob, "pushed", "FROM busybox:local\nENV pushed=1\n")
	if out, err := p.Docker(limit(t), lab.Bob, "build", "-q", "-t", name, dir); err != nil {
		t.Fatal(out)
	}
	id := imageID(t, name)
	if out, err := p.Docker(limit(t), lab.Bob, "push", name); err != nil {
		t.Fatal(out)
	}
	if digests := admin(t, "image", "inspect", id, "--format", "{{.RepoDigests}}"); !strings.Contains(digests, "@sha256:") {
		t.Fatalf("the push left %s", digests)
	}
	for _, ref := range []string{id, id[7:19], name} {
		if out, err := p.Docker(limit(t), lab.Alice, "image", "inspect", ref); err == nil {
			t.Errorf("alice sees %s: %s", ref, out)
		}
	}
	if out, err := p.Docker(limit(t), lab.Alice, "images", "-aq", "--no-trunc"); err != nil || strings.Contains(out, id) {
		t.Errorf("alice lists it: %v, %s", err, out)
	}
}

// hang sends a request with a body that does not end, and returns what ends it.
func hang(t *testing.T, socket, target, body string) (end func()) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", target, len(body), body); err != nil {
		t.Fatal(err)
	}
	return func() { c.Close() }
}

// TestWhatIsRefusedReservesNothing has alice ask for bob's tags with requests that
// hang: bob goes on using them.
func TestWhatIsRefusedReservesNothing(t *testing.T) {
	as(t, lab.Bob, "tag", lab.Image, "reserve:1")
	untag(t, "reserve:1")
	alice := theProxy.Socket(lab.Alice)
	archive, err := os.ReadFile(savedAs(t, "reserve:1"))
	if err != nil {
		t.Fatal(err)
	}
	// A build of hers, and an archive of which the end is missing.
	defer hang(t, alice, "/build?t=reserve:1", "x")()
	defer hang(t, alice, "/images/load", string(archive))()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					ask(t, alice, "POST", "/images/busybox:local/tag?repo=reserve&tag=1", "")
				}
			}
		}()
	}
	time.Sleep(time.Second)
	for range 20 {
		if got := ask(t, theProxy.Socket(lab.Bob), "POST", "/images/busybox:local/tag?repo=reserve&tag=1", ""); got.status != http.StatusCreated {
			t.Errorf("bob's own tag: %d %s", got.status, got.body)
		}
	}
	close(stop)
	wg.Wait()
}

// TestNobodyBecomesTheWriterOfWhatTheyDidNotWrite has alice be about to build what
// comes to be by bob's build: it is not hers then.
func TestNobodyBecomesTheWriterOfWhatTheyDidNotWrite(t *testing.T) {
	classic(t)
	reg := lab.NewRegistry()
	defer reg.Close()
	if _, err := reg.Set("from", "1", "base"); err != nil {
		t.Fatal(err)
	}
	name := reg.Host() + "/from:1"
	untag(t, "squat-bob:1", name)
	end := hang(t, theProxy.Socket(lab.Alice), "/build?t="+name, "x")
	time.Sleep(500 * time.Millisecond)
	as(t, lab.Bob, "build", "-q", "-t", "squat-bob:1", dockerfile(t, lab.Bob, "squat", "FROM "+name+"\nENV a=b\n"))
	end()
	eventually(t, "the reservation ends", func() bool {
		out, err := theProxy.Docker(limit(t), lab.Bob, "pull", name)
		return err == nil && strings.Contains(out, "up to date")
	})
	text, err := os.ReadFile(filepath.Join(theProxy.Dir, "state", "images.json"))
	if err != nil || strings.Contains(string(text), `"`+name+`":{"user":"alice"`) {
		t.Errorf("alice wrote it: %v: %s", err, text)
	}
	as(t, lab.Bob, "rmi", "squat-bob:1")
}

// TestRemovalByIDRace removes alice's image by its ID while bob gives it a name: a
// name that he was told he has stays.
func TestRemovalByIDRace(t *testing.T) {
	classic(t)
	untag(t, "idrace:1", "idrace:2", "idrace-bob:1")
	dir := dockerfile(t, lab.Alice, "idrace", "FROM busybox:local\nENV idrace=1\n")
	var given, lost int
	for began := time.Now(); time.Since(began) < raceTime/2; {
		as(t, lab.Alice, "build", "-q", "-t", "idrace:1", "-t", "idrace:2", dir)
		id := imageID(t, "idrace:1")
		var wg sync.WaitGroup
		wg.Add(1)
		status := 0
		go func() {
			defer wg.Done()
			status = ask(t, theProxy.Socket(lab.Bob), "POST", "/images/"+id+"/tag?repo=idrace-bob&tag=1", "").status
		}()
		ask(t, theProxy.Socket(lab.Alice), "DELETE", "/images/"+id+"?force=1", "")
		wg.Wait()
		if status == http.StatusCreated {
			given++
			if imageID(t, "idrace-bob:1") == "" {
				lost++
			}
		}
		ask(t, theProxy.Socket(lab.Bob), "DELETE", "/images/idrace-bob:1?force=1", "")
	}
	if lost > 0 {
		t.Errorf("of %d names that bob was given, %d were gone", given, lost)
	}
}

// TestPrivateImagesRace moves a short name that is the start of bob's image's ID to
// and fro while containers are made of it: none is made of bob's.
func TestPrivateImagesRace(t *testing.T) {
	classic(t)
	p := configured(t, "images: private\nbuilds: {buildkit: deny}\n")
	untag(t, "prace:1")
	if out, err := p.Docker(limit(t), lab.Bob, "build", "-q", "-t", "prace:1", dockerfile(t, lab.Bob, "prace", "FROM busybox:local\nENV race=bob\n")); err != nil {
		t.Fatal(out)
	}
	id := imageID(t, "prace:1")
	short := id[7:13]
	sock := p.Socket(lab.Alice)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				ask(t, sock, "POST", "/images/busybox:local/tag?repo="+short, "")
				ask(t, sock, "DELETE", "/images/"+short+":latest", "")
			}
		}
	}()
	made := 0
	for began := time.Now(); time.Since(began) < raceTime/4; {
		got := ask(t, sock, "POST", "/containers/create", `{"Image":"`+short+`"}`)
		if got.status != http.StatusCreated {
			continue
		}
		made++
		c := idIn(got)
		if of := admin(t, "inspect", c, "--format", "{{.Image}}"); of == id {
			t.Fatalf("after %d containers one is made of bob's image", made)
		}
		ask(t, sock, "DELETE", "/containers/"+c, "")
	}
	close(stop)
	<-done
	ask(t, sock, "DELETE", "/images/"+short+":latest", "")
	if made == 0 {
		t.Error("the race was not run")
	}
}

// TestAHostileArchiveStaysSmall loads what unpacks to far more than it is, and looks
// at the daemon's memory.
func TestAHostileArchiveStaysSmall(t *testing.T) {
	before, err := theProxy.Metric(limit(t), "process_resident_memory_bytes")
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(bomb(w)) }()
	req, err := http.NewRequestWithContext(limit(t), http.MethodPost, "http://d/images/load", r)
	if err != nil {
		t.Fatal(err)
	}
	c := lab.HTTPClient(theProxy.Socket(lab.Alice))
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("answered %s", resp.Status)
	}
	after, err := theProxy.Metric(limit(t), "process_resident_memory_bytes")
	if err != nil || after-before > 100<<20 {
		t.Errorf("the daemon went from %.0f to %.0f bytes, %v", before, after, err)
	}
}

// bomb writes an archive whose manifest is 4 MB of empty objects.
func bomb(w io.Writer) error {
	text := []byte("[" + strings.Repeat("{},", 1<<20) + "{}]")
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	return errors.Join(t.WriteHeader(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}), write(t, text), t.Close(), z.Close())
}
