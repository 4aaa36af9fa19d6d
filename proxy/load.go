package proxy

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// A refusedBody ends a body that is decided on while it is forwarded.
type refusedBody struct {
	verdict policy.Verdict
	err     error
}

func (r *refusedBody) Error() string {
	if r.err != nil {
		return r.err.Error()
	}
	return r.verdict.Message()
}

// refuseBody answers for a body that was refused on its way; the Engine has got no
// end of it.
func (x *exchange) refuseBody(r *refusedBody) error {
	x.takeIn()
	x.w.Header().Set("Connection", "close")
	if r.err != nil {
		x.rec.Rule = "image-archive"
		return r.err
	}
	x.refuse(r.verdict)
	return nil
}

// loadImages rebuilds the archive of a load on its way to the Engine, which reads
// it to the end before it does anything: the names in it are decided on before the
// end is sent.
func loadImages(x *exchange) (policy.Verdict, error) {
	if err := x.knowImages(); err != nil {
		return policy.Verdict{}, err
	}
	if x.subject.Mode == policy.ModeFull {
		if !x.srv.buffered.take(x.subject.User, loadShare) {
			return policy.Verdict{}, &statusError{http.StatusTooManyRequests, "too many archives of yours are being loaded at once; load them one after another"}
		}
		x.buffered += loadShare
		a := &imageArchive{x: x, links: make(map[string]bool), seen: make(map[string]bool)}
		x.atEnd(func() {
			a.end()
			if a.open.Outcome == policy.FailOpen {
				x.verdict = a.open
				x.decided()
			}
		})
		x.filterBody(a.copy)
		archive := bufio.NewReaderSize(x.stream, bufferSize)
		x.stream = archive
		// What is no archive from the beginning is not even begun.
		var refused *refusedBody
		if _, err := archive.Peek(1); errors.As(err, &refused) {
			x.takeIn()
			x.rec.Rule = "image-archive"
			return refused.verdict, refused.err
		}
	}
	return policy.Verdict{Outcome: policy.Allow, Rule: "load-images"}, nil
}

// An imageArchive is an archive of images on its way.
type imageArchive struct {
	x *exchange
	// links are the entries that lead elsewhere; seen the descriptions.
	links, seen map[string]bool

	// open is what was let through because of a switch.
	open policy.Verdict

	// mu guards what the exchange holds for it.
	mu   sync.Mutex
	ends []func()
}

// maxDescription is the largest description of an archive's images, in bytes.
const maxDescription = 4 << 20

// maxEntries is how many entries an archive of images may have.
const maxEntries = 1 << 20

// descriptions rebuild the files that name images, and return the names.
var descriptions = map[string]func([]byte) (rebuilt []byte, names []string, err error){
	"manifest.json": readManifest,
	"repositories":  readRepositories,
	"index.json":    readIndex,
}

// firstEntry is an empty file, which the Engine does not look at.
const firstEntry = "0-first"

// copy writes the archive anew.
func (a *imageArchive) copy(dst io.Writer, src io.Reader) error {
	plain, err := decompress(src)
	if err != nil {
		return refusedArchive("%v", err)
	}
	defer plain.Close()
	in, out := tar.NewReader(plain), tar.NewWriter(dst)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refusedArchive("it is not a whole tar archive: %v", err)
		}
		if n == 0 {
			// The Engine tells by the first bytes how an archive is packed, and these are the
			// first entry's name: it is not the client's to choose.
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: firstEntry, Mode: 0o600}); err != nil {
				return err
			}
		}
		if n > maxEntries {
			return refusedArchive("it has more than %d entries", maxEntries)
		}
		if err := a.entry(out, in, h); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	// What follows the end of an archive is padding.
	_, err = io.Copy(io.Discard, plain)
	if err != nil {
		return refusedArchive("it does not end well: %v", err)
	}
	return nil
}

func refusedArchive(format string, args ...any) error {
	return &refusedBody{err: badRequest("the archive cannot be loaded: "+format, args...)}
}

// entry writes one entry anew.
func (a *imageArchive) entry(out *tar.Writer, in io.Reader, h *tar.Header) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if a.links[dir] {
			return refusedArchive("the entry %.200q lies behind a link", h.Name)
		}
	}
	if !printable(name) || !printable(h.Linkname) {
		return refusedArchive("the entry %.200q has a name that no image's has", h.Name)
	}
	fresh := &tar.Header{Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode & 0o777, ModTime: time.Unix(0, 0)}
	describe := descriptions[name]
	switch h.Typeflag {
	case tar.TypeDir:
		fresh.Name += "/"
	case tar.TypeReg, tar.TypeGNUSparse:
		fresh.Typeflag = tar.TypeReg
		delete(a.links, name)
	case tar.TypeSymlink, tar.TypeLink:
		a.links[name] = true
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return refusedArchive("the entry %.200q is neither a file nor a directory nor a link", h.Name)
	}
	if describe == nil {
		if err := out.WriteHeader(fresh); err != nil {
			return refusedArchive("the entry %.200q: %v", h.Name, err)
		}
		_, err := io.Copy(out, in)
		return err
	}
	if fresh.Typeflag != tar.TypeReg || a.seen[name] {
		return refusedArchive("%s is not one plain file", name)
	}
	a.seen[name] = true
	text, err := io.ReadAll(io.LimitReader(in, maxDescription+1))
	if err != nil || len(text) > maxDescription {
		return refusedArchive("%s is larger than %d bytes, or cut", name, maxDescription)
	}
	if tooManyTokens(text) {
		return refusedArchive("%s has more than %d values", name, maxTokens)
	}
	text, names, err := describe(text)
	if err != nil {
		return refusedArchive("%s: %v", name, err)
	}
	if err := a.claim(names); err != nil {
		return err
	}
	fresh.Size = int64(len(text))
	if err := out.WriteHeader(fresh); err != nil {
		return refusedArchive("the entry %.200q: %v", h.Name, err)
	}
	_, err = out.Write(text)
	return err
}

// printable reports whether a text is of printable ASCII alone.
func printable(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) < 0
}

// claim decides about the names of images. It runs beside the exchange's own
// goroutine and so keeps what it learns to itself.
func (a *imageArchive) claim(names []string) error {
	var tags []string
	for _, name := range names {
		tag, err := shortTag(name, "")
		if err != nil {
			return &refusedBody{err: err}
		}
		tags = append(tags, tag)
	}
	if len(tags) == 0 {
		return nil
	}
	own := &exchange{srv: a.x.srv, conn: a.x.conn, r: a.x.r, subject: a.x.subject}
	v, err := own.claimTags(&claim{use: policy.WriteTag, tags: tags, proof: func(_ *engine.Image, tag string) bool {
		// Asked when the answer has been read.
		return slices.Contains(a.x.loaded, tag)
	}})
	a.mu.Lock()
	a.ends = append(a.ends, own.ends...)
	a.mu.Unlock()
	if err != nil || !v.Allowed() {
		a.end()
		return &refusedBody{verdict: v, err: err}
	}
	if v.Outcome == policy.FailOpen {
		a.open = v
	}
	return nil
}

// end gives the names back.
func (a *imageArchive) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range slices.Backward(a.ends) {
		f()
	}
	a.ends = nil
}

// maxWindow is the largest window of a zstd stream, in bytes: that of its level 19.
const maxWindow = 8 << 20

// loadShare is how much of a user's share of memory an archive takes, in bytes.
const loadShare = 2 * maxWindow

// decompress reads what docker save wrote, plain or compressed as the Engine
// takes it.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, bufferSize)
	head, _ := br.Peek(6)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, errors.New("it is compressed with xz; use xz -dc FILE | docker load")
	}
	return io.NopCloser(br), nil
}

// readManifest reads what docker save writes.
func readManifest(text []byte) ([]byte, []string, error) {
	var list []struct {
		Config       string
		RepoTags     []string
		Layers       []string
		Parent       string                     `json:",omitempty"`
		LayerSources map[string]json.RawMessage `json:",omitempty"`
	}
	if err := readOne(text, &list); err != nil {
		return nil, nil, err
	}
	var names []string
	for _, one := range list {
		names = append(names, one.RepoTags...)
	}
	rebuilt, err := json.Marshal(list)
	return rebuilt, names, err
}

// readRepositories reads what docker save wrote before Docker 1.10.
func readRepositories(text []byte) ([]byte, []string, error) {
	var repos map[string]map[string]string
	if err := readOne(text, &repos); err != nil {
		return nil, nil, err
	}
	var names []string
	for repo, tags := range repos {
		for tag := range tags {
			name, err := shortTag(repo, tag)
			if err != nil {
				return nil, nil, err
			}
			names = append(names, name)
		}
	}
	rebuilt, err := json.Marshal(repos)
	return rebuilt, names, err
}

// imageNameKey is the annotation in which containerd keeps an image's whole name.
const imageNameKey = "io.containerd.image.name"

// readIndex reads the index of an OCI layout, which Engines with containerd's
// image store go by.
func readIndex(text []byte) ([]byte, []string, error) {
	var index ocispec.Index
	if err := readOne(text, &index); err != nil {
		return nil, nil, err
	}
	var names []string
	for _, m := range index.Manifests {
		if name := m.Annotations[imageNameKey]; name != "" {
			names = append(names, name)
		} else if name := m.Annotations[ocispec.AnnotationRefName]; name != "" {
			names = append(names, name)
		}
		for _, key := range []string{imageNameKey, ocispec.AnnotationRefName} {
			if name := m.Annotations[key]; name != "" {
				if _, err := reference.ParseNormalizedNamed(name); err != nil {
					return nil, nil, fmt.Errorf("the name %.200q: %w", name, err)
				}
			}
		}
	}
	rebuilt, err := json.Marshal(&index)
	return rebuilt, names, err
}

// readOne reads a text that is one JSON value.
func readOne(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON")
	}
	return nil
}
