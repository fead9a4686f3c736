plugins {
    `java-library`
}

// The classes of Java 8, not only its language: ByteBuffer's methods changed their signatures since.
tasks.withType<JavaCompile>().configureEach {
    options.release = 8
}

dependencies {
    compileOnly(libs.json) // Android has it
}
