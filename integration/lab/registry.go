package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
)

// A Registry serves images that tests make up, over plain HTTP on the loopback
// interface, as the distribution specification says for pulls.
type Registry struct {
	*httptest.Server

	mu    sync.Mutex
	blobs map[string][]byte
	// manifests are digests by name and tag.
	manifests map[string]string
	// Wait, where set, is called before each blob is sent.
	Wait func()
	// uploads counts what is pushed.
	uploads int
}

// NewRegistry returns a registry without images.
func NewRegistry() *Registry {
	r := &Registry{blobs: make(map[string][]byte), manifests: make(map[string]string)}
	r.Server = httptest.NewServer(r)
	return r
}

// Host is the registry's part of a name.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// manifestKind and listKind are media types of manifests.
const (
	manifestKind = "application/vnd.docker.distribution.manifest.v2+json"
	listKind     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Set makes name:tag an image with one file, for this machine's architecture, and
// returns its digest.
func (r *Registry) Set(name, tag, text string) (string, error) {
	manifest, err := r.image(runtime.GOARCH, text)
	if err != nil {
		return "", err
	}
	return r.name(name, tag, manifest), nil
}

// SetFor makes name:tag an image with one file for each of several architectures.
func (r *Registry) SetFor(name, tag, text string, architectures ...string) (string, error) {
	var all []any
	for _, arch := range architectures {
		manifest, err := r.image(arch, text+arch)
		if err != nil {
			return "", err
		}
		all = append(all, map[string]any{"mediaType": manifestKind, "size": len(manifest), "digest": digestOf(manifest),
			"platform": map[string]string{"os": "linux", "architecture": arch}})
	}
	list, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": listKind, "manifests": all})
	if err != nil {
		return "", err
	}
	return r.name(name, tag, list), nil
}

// name gives a manifest a name.
func (r *Registry) name(name, tag string, manifest []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[digestOf(manifest)] = manifest
	r.manifests[name+":"+tag] = digestOf(manifest)
	return digestOf(manifest)
}

// image makes an image with one file and returns its manifest.
func (r *Registry) image(arch, text string) ([]byte, error) {
	var layer, packed bytes.Buffer
	w, z := tar.NewWriter(&layer), gzip.NewWriter(&packed)
	err := w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err = errors.Join(err, w.Close()); err == nil {
		_, err = z.Write(layer.Bytes())
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Cmd": []string{"/none"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer.Bytes())}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestKind,
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": digestOf(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": packed.Len(), "digest": digestOf(packed.Bytes())}},
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, blob := range [][]byte{packed.Bytes(), config, manifest} {
		r.blobs[digestOf(blob)] = blob
	}
	return manifest, nil
}

func digestOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ServeHTTP answers a pull, or takes a push.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.Wait != nil && strings.Contains(req.URL.Path, "/blobs/") {
		r.Wait()
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.take(w, req, path)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := "application/octet-stream"
	name, digest, isManifest := strings.Cut(path, "/manifests/")
	if isManifest {
		kind = manifestKind
		if !strings.HasPrefix(digest, "sha256:") {
			digest = r.manifests[name+":"+digest]
		}
	} else {
		_, digest, _ = strings.Cut(path, "/blobs/")
	}
	blob, ok := r.blobs[digest]
	if isManifest && bytes.Contains(blob, []byte(listKind)) {
		kind = listKind
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintln(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(blob)
	}
}

// take takes a part of a push: the start of an upload, its bytes, its end with the
// digest, and the manifest.
func (r *Registry) take(w http.ResponseWriter, req *http.Request, path string) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name, tag, isManifest := strings.Cut(path, "/manifests/")
	switch {
	case isManifest:
		r.blobs[digestOf(body)] = body
		r.manifests[name+":"+tag] = digestOf(body)
		w.Header().Set("Docker-Content-Digest", digestOf(body))
		w.WriteHeader(http.StatusCreated)
	case req.Method == http.MethodPost:
		r.uploads++
		w.Header().Set("Location", fmt.Sprintf("%s/v2/%s%d", r.URL, path, r.uploads))
		w.WriteHeader(http.StatusAccepted)
	default:
		at := req.URL.Path
		r.blobs[at] = append(r.blobs[at], body...)
		w.Header().Set("Location", r.URL+at)
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(r.blobs[at])-1))
		if req.Method == http.MethodPatch {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		digest := req.URL.Query().Get("digest")
		r.blobs[digest] = r.blobs[at]
		w.Header().Set("Docker-Content-Digest", digest)
		w.WriteHeader(http.StatusCreated)
	}
}
