plugins {
    alias(libs.plugins.android.library)
}

android {
    namespace = "qndeploy.executorch"
    compileSdk = 34
    defaultConfig { minSdk = 24 }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

dependencies {
    api(project(":core"))
    api(libs.executorch.android)
}
