package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
}

// NewRegistry returns a registry without images.
func NewRegistry() *Registry {
	r := &Registry{blobs: make(map[string][]byte), manifests: make(map[string]string)}
	r.Server = httptest.NewServer(r)
	return r
}

// Host is the registry's part of a name.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// Set makes name:tag an image with one file, and returns its digest.
func (r *Registry) Set(name, tag, text string) (string, error) {
	var layer, packed bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		return "", err
	}
	if _, err := w.Write([]byte(text)); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(layer.Bytes()); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Cmd": []string{"/none"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer.Bytes())}},
	})
	if err != nil {
		return "", err
	}
	const kind = "application/vnd.docker.distribution.manifest.v2+json"
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": kind,
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": digestOf(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": packed.Len(), "digest": digestOf(packed.Bytes())}},
	})
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, blob := range [][]byte{packed.Bytes(), config, manifest} {
		r.blobs[digestOf(blob)] = blob
	}
	r.manifests[name+":"+tag] = digestOf(manifest)
	return digestOf(manifest), nil
}

func digestOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ServeHTTP answers a pull.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := "application/octet-stream"
	name, digest, isManifest := strings.Cut(path, "/manifests/")
	if isManifest {
		kind = "application/vnd.docker.distribution.manifest.v2+json"
		if !strings.HasPrefix(digest, "sha256:") {
			digest = r.manifests[name+":"+digest]
		}
	} else {
		_, digest, _ = strings.Cut(path, "/blobs/")
	}
	blob, ok := r.blobs[digest]
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
