package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// runPush uploads the first image of an archive, OCI's or of the form of `docker save`, to a
// registry that speaks plain HTTP.
func runPush(args []string) error {
	fs := flag.NewFlagSet("push", flag.ExitOnError)
	file := fs.String("archive", "", "OCI archive (needed)")
	user := fs.String("user", "", "account at the registry")
	fs.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: testcluster push -archive FILE [-user NAME] REGISTRY/NAME:TAG\nThe password is in PUSH_PASSWORD.")
		fs.PrintDefaults()
	}
	fs.Parse(args)
	registry, rest, ok := strings.Cut(fs.Arg(0), "/")
	at := strings.LastIndex(rest, ":")
	if *file == "" || !ok || at < 0 {
		fs.Usage()
		os.Exit(2)
	}
	name, tag := rest[:at], rest[at+1:]
	files, err := readArchive(*file)
	if err != nil {
		return err
	}
	if err := fromSaved(files); err != nil {
		return err
	}
	var index struct {
		Manifests []struct{ MediaType, Digest string }
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) == 0 {
		return fmt.Errorf("%s has no index of images: %v", *file, err)
	}
	top := index.Manifests[0]
	manifest := files[blobPath(top.Digest)]
	var content struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(manifest, &content); err != nil {
		return err
	}
	base := fmt.Sprintf("http://%s/v2/%s", registry, name)
	send := func(method, to, kind string, body []byte) (*http.Response, error) {
		request, err := http.NewRequest(method, to, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		request.Header.Set("Content-Type", kind)
		if *user != "" {
			request.SetBasicAuth(*user, os.Getenv("PUSH_PASSWORD"))
		}
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode >= 300 {
			words, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			return nil, fmt.Errorf("%s %s: %s %s", method, to, response.Status, words)
		}
		return response, nil
	}
	digests := []string{content.Config.Digest}
	for _, layer := range content.Layers {
		digests = append(digests, layer.Digest)
	}
	for _, digest := range digests {
		blob, ok := files[blobPath(digest)]
		if !ok {
			return fmt.Errorf("%s lacks %s", *file, digest)
		}
		begun, err := send("POST", base+"/blobs/uploads/", "application/octet-stream", nil)
		if err != nil {
			return err
		}
		place, err := begun.Location()
		if err != nil {
			return err
		}
		query := place.Query()
		query.Set("digest", digest)
		place.RawQuery = query.Encode()
		if _, err := send("PUT", place.String(), "application/octet-stream", blob); err != nil {
			return err
		}
	}
	if _, err := send("PUT", base+"/manifests/"+url.PathEscape(tag), top.MediaType, manifest); err != nil {
		return err
	}
	fmt.Printf("%s/%s@%s\n", registry, name, top.Digest)
	return nil
}

// fromSaved makes an OCI layout of what `docker save` writes.
func fromSaved(files map[string][]byte) error {
	if _, ok := files["index.json"]; ok {
		return nil
	}
	var saved []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &saved); err != nil || len(saved) == 0 {
		return fmt.Errorf("the archive holds no image: %v", err)
	}
	const oci = "application/vnd.oci.image."
	keep := func(kind string, content []byte) map[string]any {
		files[blobPath(digest(content))] = content
		return descriptor(oci+kind, content)
	}
	layers := []any{}
	for _, name := range saved[0].Layers {
		layers = append(layers, keep("layer.v1.tar", files[name]))
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     oci + "manifest.v1+json",
		"config":        keep("config.v1+json", files[saved[0].Config]),
		"layers":        layers,
	})
	if err != nil {
		return err
	}
	files["index.json"], err = json.Marshal(map[string]any{
		"schemaVersion": 2,
		"manifests":     []any{keep("manifest.v1+json", manifest)},
	})
	return err
}

func blobPath(digest string) string {
	return "blobs/" + strings.Replace(digest, ":", "/", 1)
}

func readArchive(path string) (map[string][]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	files := map[string][]byte{}
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if files[strings.TrimPrefix(header.Name, "./")], err = io.ReadAll(reader); err != nil {
			return nil, err
		}
	}
}
